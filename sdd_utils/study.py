"""A study is one YAML file under `studies/`: load it, check it, and name the files of its jobs.

The schema is the dataclass below; `studies/embedded.yaml` comments every key.
"""

import difflib
import re
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import yaml

from sdd_utils import ROOT, data, sources
from sdd_utils.arms import ARMS

STUDIES = ROOT / "studies"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything an experiment fixes. Units: rows, tokens and documents are counts, rates are per optimiser step."""

    model: str
    data_sets: dict
    own_data: dict
    max_response_words: int
    calibration_sets: list
    calibration_rows: int
    calibration_batch: int
    block_sizes: list
    finetune_block_sizes: list
    scaling: dict
    arms: list
    seeds: list
    temperature: float
    top_p: float
    top_k: int
    rewrite_tokens: int
    generation_batch: int
    lora_rank: int
    lora_alpha: int
    lora_targets: str
    lora_dropout: float
    learning_rate: float
    epochs: int
    batch_size: int
    max_length: int
    tasks: dict
    shots: dict
    chat_tasks: list
    in_domain: dict
    evaluation_batch: int
    merge_pairs: list
    slerp_t: list
    encoder: str
    answer_prompts: int
    answer_tokens: int


def path_of(study: str) -> Path:
    """The YAML file of a study given by name (`embedded`) or by path."""
    path = Path(study) if study.endswith((".yaml", ".yml")) else STUDIES / f"{study}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise FileNotFoundError(f"study {study!r} is unknown: use one of {known}, or the path of a YAML file")
    return path


def load(study: str) -> Study:
    """Read and check a study. Raises ValueError, in one sentence, on a wrong key, type or value."""
    values = _read(study)
    check_keys(given=values, allowed=[field.name for field in fields(Study)], where=f"study {study!r}")
    for field in fields(Study):
        check_type(name=field.name, value=values[field.name], kind=field.type)
    _check_values(values)
    return Study(**values)


def _read(study: str) -> dict:
    """A study's keys; those that it leaves out come from the study that its key `base` names."""
    values = yaml.safe_load(path_of(study).read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"study {study!r} is no list of 'key: value' lines: copy studies/embedded.yaml")
    base = values.pop("base", None)
    if base is None:
        return values
    below = yaml.safe_load(path_of(str(base)).read_text())
    if "base" in below:
        raise ValueError(f"study {study!r} has the base {base!r}, which has a base itself: name a complete study")
    return below | values


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
    if not numeric and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"study key {name!r} is {value!r}: it must be a {kind.__name__}")


_MAY_BE_ZERO = ("top_k", "max_response_words")


def _check_values(values: dict) -> None:
    """Bounds that need no model: the number of layers is checked where the model is known."""
    for name, value in values.items():
        if isinstance(value, int) and value < (0 if name in _MAY_BE_ZERO else 1):
            raise ValueError(f"study key {name!r} is {value}: it must be a whole number of at least 1")
        if isinstance(value, list) and len(set(map(str, value))) != len(value):
            raise ValueError(f"study key {name!r} is {value}: it names something twice, keep each once")
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
    bad_t = [t for t in values["slerp_t"] if not isinstance(t, int | float) or not 0 <= t <= 1]
    if bad_t:
        raise ValueError(f"study key 'slerp_t' holds {bad_t[0]!r}: SLERP's t lies in 0..1")
    if not any(0 < t < 1 for t in values["slerp_t"]):
        raise ValueError(f"study key 'slerp_t' is {values['slerp_t']}: name a point between 0 and 1, the parents apart")


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


def finetunings(study) -> list[dict]:
    """What every fine-tuning is run on: the main comparison, then the additional ones on the first rows of a set."""
    tuned, axes = [*product(study.finetune_block_sizes, study.seeds)], study.scaling
    found = [(n, name, rows, seed) for n, seed in tuned for name, rows in study.data_sets.items()]
    if axes:
        fewer = product(axes["block_sizes"], study.seeds, axes["data_sets"], axes["rows"])
        found += [(n, name, rows, seed) for n, seed, name, rows in fewer]
    return [dict(zip(("block_size", "data_set", "rows", "seed"), which, strict=True)) for which in found]


def run_folder(run: str) -> Path:
    """The folder of a run's checkpoints, sets and records; relative paths start at the repository."""
    return ROOT / run


def record_path(run: str, step: str, **which) -> Path:
    """Where a record lies, e.g. `records/finetuning-n4-gsm_symbolic-48rows-s0.json`. Names are for people: read
    `params`."""
    return run_folder(run) / "records" / f"{label(step, **which)}.json"


def label(
    step: str,
    *,
    block_size: int | None = None,
    data_set: str | None = None,
    rows: int | None = None,
    seed: int | None = None,
) -> str:
    """A short name for a job: its step and what it was run on."""
    counted = rows is not None and (f"{rows}rows" if rows else "allrows")
    parts = [step, block_size is not None and f"n{block_size}", data_set, counted, seed is not None and f"s{seed}"]
    return "-".join(part for part in parts if part)
