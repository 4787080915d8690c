"""What a study may say beyond types and bounds, and how a mistake is reported: one sentence with value, rule and fix.

Bounds that need a model, such as its number of layers, are checked where the model is known.
"""

import difflib
import functools
import json
import re

import yaml

from sdd_utils.base.strategies import PAPERS
from sdd_utils.data import sources
from sdd_utils.data.rows import data_set_names

WRONG_KEYS = ("extra_forbidden", "invalid_key", "missing")  # pydantic's names


def check_keys(*, given: dict, allowed: list[str], where: str) -> None:
    """Raise ValueError, in one sentence, for a key too many or too few."""
    if problem := _key_problem(given=given, allowed=allowed, where=where):
        raise ValueError(problem)


def check_type(*, name: str, value, kind: type) -> None:
    """Raise ValueError unless a notebook's parameter is of its type; a whole number does for a float."""
    numeric = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if not numeric and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
        raise ValueError(f"parameter {name!r} is {value!r}: it must be a {kind.__name__}")


def distinct(values: list) -> list:
    """The list itself. Raises ValueError where it names something twice."""
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"it names {twice[0]!r} twice, keep each once")
    return values


def check_study(study) -> None:
    """Raise ValueError, in one sentence, where keys that are right by themselves do not go together."""
    _check_arms(study.arms)
    _check_data(study)
    if PAPERS not in study.selection:
        raise ValueError(f"study key 'selection' is {study.selection}: add {PAPERS}, the one that is fine-tuned")
    unpruned = [n for n in study.finetune_block_sizes if n not in study.block_sizes]
    if unpruned:
        raise ValueError(f"study key 'finetune_block_sizes' holds {unpruned[0]}: add it to 'block_sizes' as well")
    _among("shots", study.shots, study.tasks)
    _among("chat_tasks", study.chat_tasks, study.tasks)
    for name, tasks in study.in_domain.items():
        _among(f"in_domain: {name}", tasks, study.tasks)
    if study.scaling:
        _check_scaling(study)
    if study.capacities:
        _check_capacities(study)
    if study.rewrite_attempts > 1 and (study.temperature == 0 or study.top_k == 1):
        raise ValueError(
            f"study key 'rewrite_attempts' is {study.rewrite_attempts}: set it to 1, as greedy decoding (temperature 0 "
            "or top_k 1) would write the same text again"
        )
    if not any(0 < t < 1 for t in study.slerp_t):
        raise ValueError(f"study key 'slerp_t' is {study.slerp_t}: add a point between 0 and 1, which are the parents")


def _among(name: str, given, allowed) -> None:
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"study key {name!r} holds {unknown[0]!r}: use one of {', '.join(map(str, allowed))}")


def _check_arms(arms: list) -> None:
    missing = [arm for arm in ("sft", "self_data_ft") if arm not in arms]
    if missing:
        raise ValueError(f"study key 'arms' is {arms}: add {missing[0]}, one of the two that are compared")


def _check_data(study) -> None:
    """Own data sets are complete, and every key names data sets that there are. `in_domain` may name more of them than
    are fine-tuned on."""
    for name, keys in study.own_data.items():
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"own_data {name!r} is no name for a data set: use letters, digits and _")
        sources.own_source(name, keys)
    known = [*data_set_names(), *study.own_data]
    _among("calibration_sets", study.calibration_sets, known)
    _among("in_domain", study.in_domain, known)
    _among("data_sets", study.data_sets, [name for name in known if name != "c4"])  # running text, nobody asked for it
    for pair in study.merge_pairs:
        _among("merge_pairs", pair, study.data_sets)


def _check_scaling(study) -> None:
    rows, names = study.scaling["rows"], study.scaling["data_sets"]
    _among("scaling: block_sizes", study.scaling["block_sizes"], study.finetune_block_sizes)
    _among("scaling: data_sets", names, study.data_sets)
    for name in names:
        full = study.data_sets[name]  # 0 is all, however many that is
        if full and max(rows) >= full:
            raise ValueError(f"study key 'scaling' asks for {max(rows)} rows of {name}: use fewer than its {full}")


def _check_capacities(study) -> None:
    _among("capacities: block_sizes", study.capacities["block_sizes"], study.finetune_block_sizes)
    _among("capacities: data_sets", study.capacities["data_sets"], study.data_sets)
    own = {"rank": study.lora_rank, "alpha": study.lora_alpha, "targets": study.lora_targets}
    if own in study.capacities["lora"]:
        raise ValueError(f"study key 'capacities: lora' holds {own}: delete it, it is the study's own capacity")


def first_sentence(error, *, values: dict, schema: dict, where: str) -> str:
    """The first mistake that pydantic found, as one sentence; a wrong key comes before a wrong value.

    Args:
        error: pydantic's ValidationError.
        values: what was validated.
        schema: the model's JSON schema.
        where: the study, for the sentence.
    """
    first = min(error.errors(), key=lambda found: found["type"] not in WRONG_KEYS)
    kind, place, value = first["type"], first["loc"], first["input"]
    if kind in WRONG_KEYS:
        return _wrong_key(place[:-1], values=values, schema=schema, where=where)
    if kind == "value_error":  # a rule's own sentence: a whole one where it is about several keys
        said = str(first["ctx"]["error"])
        return f"{_named(place, value)}: {said}" if place else said
    if place[-1] == "[key]":
        return f"study key {place[0]!r} has the key {value!r}, which YAML reads as no text: put it in quotes"
    part = _part(place, schema)
    return f"{_named(place, value)}: it must be {described(part, schema=schema)}{_quoted_number(value, part)}"


def _wrong_key(place: tuple, *, values: dict, schema: dict, where: str) -> str:
    for step in place:
        values = values[step]
    allowed = list(_part(place, schema)["properties"])
    where = f"study key {_path(place)!r}" if place else where
    return _key_problem(
        given=values, allowed=allowed, where=where, or_else="" if place else ", or a line 'base: embedded'"
    )


def _key_problem(*, given: dict, allowed: list[str], where: str, or_else: str = "") -> str:
    """What is wrong with these keys, in one sentence, or an empty string."""
    for key in given:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"delete it or use one of {', '.join(allowed)}"
            return f"{where}: unknown key {key!r}: {fix}"
    missing = [key for key in allowed if key not in given]
    return f"{where}: missing key(s) {', '.join(missing)}: add them{or_else}" if missing else ""


def _path(place: tuple) -> str:
    return ": ".join(step for step in place if isinstance(step, str))


def _named(place: tuple, value) -> str:
    """The key that a mistake is in and the value, such as "study key 'tasks' has -1 for facts"."""
    if len(place) == 1:
        return f"study key {place[0]!r} is {value!r}"
    listed = isinstance(place[-1], int)
    return f"study key {_path(place[:-1])!r} " + (f"holds {value!r}" if listed else f"has {value!r} for {place[-1]}")


def _quoted_number(value, part: dict) -> str:
    """A hint where YAML reads what was meant as a number as text: `5e-4` has no point, "8" has quotes."""
    if part.get("type") not in ("integer", "number") or not isinstance(value, str):
        return ""
    try:
        number = json.loads(value)
    except ValueError:
        return ""
    return f", written {yaml.safe_dump(number).split()[0]}" if type(number) in (int, float) else ""


def _part(place: tuple, schema: dict) -> dict:
    """The part of a JSON schema that is about the value at this place."""
    part = schema
    for step in place:
        part = _resolved(part, schema)
        part = (
            part["items"]
            if isinstance(step, int)
            else part.get("properties", {}).get(step) or part["additionalProperties"]
        )
    return _resolved(part, schema)


def _resolved(part: dict, schema: dict) -> dict:
    return schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def described(part: dict, *, schema: dict, many: bool = False) -> str:
    """What a value must be, in words, such as "a whole number of at least 1".

    Args:
        part: the value's JSON schema.
        schema: the one that it is a part of.
        many: in the plural.
    """
    part, of = _resolved(part, schema), functools.partial(described, schema=schema)
    match part["type"]:
        case "boolean":
            return "true or false"
        case "string":
            return _text(part, many=many)
        case "integer":
            return _noun("whole number", many=many) + _bounds(part)
        case "number":
            return _noun("number", many=many) + _bounds(part)
        case "array":
            counted = f"exactly {part['maxItems']} " if "maxItems" in part else ""
            noun = _noun("list", many=many, filled="minItems" in part and not counted)
            return f"{noun} of {counted}{of(part['items'], many=True)}"
    inside = part.get("properties") or {"name": part["additionalProperties"]}
    pairs = [f"{name}: {of(value)}" for name, value in inside.items() if value is not True]  # True is any value
    noun = _noun("mapping", many=many, filled="minProperties" in part)
    return f"{noun} {{{', '.join(pairs)}}}" if pairs else noun


def _text(part: dict, *, many: bool) -> str:
    if "enum" in part:
        return ("names among " if many else "one of ") + ", ".join(part["enum"])
    if "pattern" in part:
        return part["description"]
    return "names" if many else "non-empty text"


def _noun(noun: str, *, many: bool, filled: bool = False) -> str:
    noun = f"non-empty {noun}" if filled else noun
    return f"{noun}s" if many else f"a {noun}"


def _bounds(part: dict) -> str:
    """The bounds of a number, such as " above 0 and up to 1"."""
    low, above, high = (part.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if high is not None:
        return f" from {low} to {high}" if above is None else f" above {above} and up to {high}"
    return f" of at least {low}"
