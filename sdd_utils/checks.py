"""What a study may say: a wrong key, type or value gets one sentence that names it, what is allowed and the mend."""

import difflib
import re

from sdd_utils import data, sources
from sdd_utils.arms import ARMS


def check_keys(*, given: dict, allowed: list[str], where: str) -> None:
    """Raise ValueError, in one sentence, for a key too many or too few."""
    for key in given:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            mend = f"did you mean {close[0]!r}?" if close else "delete it"
            raise ValueError(f"{where}: unknown key {key!r}: {mend} Allowed: {', '.join(allowed)}")
    missing = [key for key in allowed if key not in given]
    if missing:
        raise ValueError(f"{where}: missing key(s) {', '.join(missing)}: copy them from studies/embedded.yaml")


def check_type(*, name: str, value, kind: type) -> None:
    """Raise ValueError, in one sentence, unless a value is of its type; a whole number does for a float."""
    numeric = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not numeric and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
        raise ValueError(f"study key {name!r} is {value!r}: it must be a {kind.__name__}")


_MAY_BE_ZERO = ("top_k", "max_response_words")
_NEEDED = ("data_sets", "calibration_sets", "block_sizes", "finetune_block_sizes", "seeds", "tasks")
_RANGES = {  # of the floats: lowest, highest, and whether the lowest itself is allowed
    "temperature": (0, 10, True),
    "top_p": (0, 1, False),
    "learning_rate": (0, 1, False),
    "lora_dropout": (0, 0.99, True),
}


def check_values(values: dict) -> None:
    """Bounds that need no model: the number of layers is checked where the model is known."""
    for name, value in values.items():
        count = isinstance(value, int) and not isinstance(value, bool) and name not in _RANGES
        if count and value < (0 if name in _MAY_BE_ZERO else 1):
            raise ValueError(f"study key {name!r} is {value}: it must be a whole number of at least 1")
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            raise ValueError(f"study key {name!r} is {value}: it names something twice, keep each once")
    _check_ranges(values)
    for name in ("data_sets", "tasks", "shots"):
        _check_counts(name, values[name])
    for name in ("block_sizes", "finetune_block_sizes"):
        _check_block_sizes(name, values[name])
    extra = [n for n in values["finetune_block_sizes"] if n not in values["block_sizes"]]
    if extra:
        raise ValueError(f"study key 'finetune_block_sizes' holds {extra[0]}: add it to 'block_sizes' as well")
    _check_members("shots", values["shots"], values["tasks"])
    _check_members("chat_tasks", values["chat_tasks"], values["tasks"])
    _check_arms(values["arms"])
    _check_data(values)
    _check_domains(values)
    _check_scaling(values)
    _check_capacities(values)
    bad_t = [t for t in values["slerp_t"] if not isinstance(t, int | float) or not 0 <= t <= 1]
    if bad_t:
        raise ValueError(f"study key 'slerp_t' holds {bad_t[0]!r}: SLERP's t lies in 0..1")
    if not any(0 < t < 1 for t in values["slerp_t"]):
        raise ValueError(f"study key 'slerp_t' is {values['slerp_t']}: name a point between 0 and 1, the parents apart")


def _check_ranges(values: dict) -> None:
    for name in _NEEDED:
        if not values[name]:
            raise ValueError(
                f"study key {name!r} is empty: name at least one, or leave the key to studies/embedded.yaml"
            )
    for name, (low, high, included) in _RANGES.items():
        if not (low < values[name] <= high or included and values[name] == low):
            least = f"from {low}" if included else f"above {low}"
            raise ValueError(f"study key {name!r} is {values[name]}: it must lie {least} and up to {high}")


def _check_counts(name: str, counts: dict) -> None:
    for key, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"study key {name!r} has {count!r} for {key}: it must be a whole number of at least 0")


def _check_block_sizes(name: str, sizes: list) -> None:
    bad = [n for n in sizes if not isinstance(n, int) or n < 1]
    if bad:
        raise ValueError(f"study key {name!r} holds {bad[0]!r}: a block size is a whole number of at least 1")


def _check_members(name: str, given, allowed) -> None:
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"study key {name!r} holds {unknown[0]!r}: use one of {', '.join(map(str, allowed))}")


def _check_arms(arms: list) -> None:
    _check_members("arms", arms, ARMS)
    missing = [arm for arm in ("sft", "self_data_ft") if arm not in arms]
    if missing:
        raise ValueError(f"study key 'arms' is {arms}: add {missing[0]}, one of the two that are compared")


def _check_data(values: dict) -> None:
    """Data sets are known, their own sources complete, and merges name two of them."""
    for name, keys in values["own_data"].items():
        if not re.fullmatch(r"\w+", str(name)) or not isinstance(keys, dict):
            raise ValueError(f"own_data {name!r} is wrong: a name of letters, digits and _, then source and columns")
        sources.own(name, keys)
    known = [*data.names(), *values["own_data"]]
    _check_members("calibration_sets", values["calibration_sets"], known)
    _check_members("data_sets", values["data_sets"], [name for name in known if name != "c4"])
    for pair in values["merge_pairs"]:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"study key 'merge_pairs' holds {pair!r}: each entry is a list of two data sets")
        _check_members("merge_pairs", pair, values["data_sets"])


def _check_domains(values: dict) -> None:
    """`in_domain` names tasks of the study by data set; sets that this study does not train on do no harm."""
    _check_members("in_domain", values["in_domain"], [*data.names(), *values["own_data"]])
    for name, tasks in values["in_domain"].items():
        if not isinstance(tasks, list):
            raise ValueError(f"study key 'in_domain' has {tasks!r} for {name}: it must be a list of tasks")
        _check_members(f"in_domain: {name}", tasks, values["tasks"])


def _check_scaling(values: dict) -> None:
    """`scaling` is {} or says on how many rows, at which block sizes and on which data sets to fine-tune besides."""
    scaling = values["scaling"]
    if not scaling:
        return
    check_keys(given=scaling, allowed=["rows", "block_sizes", "data_sets"], where="study key 'scaling'")
    _check_block_sizes("scaling: rows", scaling["rows"])
    _check_members("scaling: block_sizes", scaling["block_sizes"], values["finetune_block_sizes"])
    _check_members("scaling: data_sets", scaling["data_sets"], values["data_sets"])
    for name in scaling["data_sets"]:
        full = values["data_sets"][name]
        if full and max(scaling["rows"]) >= full:
            raise ValueError(
                f"study key 'scaling' asks for {max(scaling['rows'])} rows of {name}: all it has are {full}"
            )


def _check_capacities(values: dict) -> None:
    """`capacities` is {} or says with which LoRA, at which block sizes and on which data sets to fine-tune besides."""
    asked, where = values["capacities"], "study key 'capacities'"
    if not asked:
        return
    check_keys(given=asked, allowed=["lora", "block_sizes", "data_sets"], where=where)
    _check_members("capacities: block_sizes", asked["block_sizes"], values["finetune_block_sizes"])
    _check_members("capacities: data_sets", asked["data_sets"], values["data_sets"])
    known = [{name: values[f"lora_{name}"] for name in ("rank", "alpha", "targets")}]
    for lora in asked["lora"]:
        check_keys(given=lora, allowed=list(known[0]), where=where)
        _check_counts(f"capacities: {lora}", {name: lora[name] for name in ("rank", "alpha")})
        if not lora["rank"] * lora["alpha"] or not re.fullmatch(r"[\w,.-]+", str(lora["targets"])):
            raise ValueError(f"{where} holds {lora}: rank and alpha from 1 on, targets as for 'lora_targets'")
        if lora in known:
            raise ValueError(f"{where} holds {lora} twice, or it is the study's own capacity: delete it")
        known.append(lora)
