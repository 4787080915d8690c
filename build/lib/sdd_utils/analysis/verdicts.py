"""Answers to the claims of `claims.py` and `further_claims.py`, from a study's records alone.

A part of a claim says that a difference lies on one side of 0, and some that it is at least so large. The rule: a
part holds if its estimate lies on its side and its p-value, corrected over its family of tests (Holm), is below 0.05.
It does not hold if the estimate lies significantly on the other side, or is significantly smaller than the published
size. The primary claims, which a study is sized to answer, are one family, all others the second. A claim holds if
all its parts do, and does not hold if one does not. Everything else is inconclusive. So is a claim about training with
fewer than three seeds, which do not say how far another seed would move the number. A draw of random layers counts as a
seed; what is neither trained nor drawn needs none. "Holds" and "does not hold" speak of the study's models and data,
not of the paper's.
"""

from sdd_utils.analysis.claims import Claim, Part, claims
from sdd_utils.analysis.comparisons import Missing
from sdd_utils.analysis.forgetting import tasks_of_domains
from sdd_utils.analysis.further_claims import further_claims
from sdd_utils.analysis.power import sizes_for
from sdd_utils.analysis.statistics import holm
from sdd_utils.base.number_format import amount
from sdd_utils.base.records import of_step

HOLDS, FAILS, OPEN = "holds", "does not hold", "inconclusive"
SEEDS_NEEDED, LEVEL = 3, 0.05
_NUMBERS = ("estimate", "interval", "p", "p_holm", "detectable")


def judge_claims(records: dict[str, dict], *, in_domain: dict[str, list]) -> list[dict]:
    """Every claim's verdict.

    Args:
        records: a study's records by file name.
        in_domain: the tasks of each data set's own domain, by data set.

    Returns:
        per claim {key, claim, source, unit, primary, favours, verdict, why, estimate, interval, p, p_holm, detectable,
        n, parts, records}. Estimates in points are fractions (0.01 is 1 point). The numbers are those of the part that
        decides, None where nothing was measured. `n` is {seeds, documents}; `records` names the files behind it.
    """
    there = _what_is_there([*records.values()], in_domain)
    further = [claim for claim in further_claims(in_domain) if there.issuperset(claim.needs)]
    claim_list = [*claims(in_domain), *further]
    measured = [_measured(claim, list(records.values())) for claim in claim_list]
    for primary in (True, False):
        family = [parts for claim, (parts, _) in zip(claim_list, measured, strict=True) if claim.primary == primary]
        _correct([part for parts in family for part in parts])
    return [_answer(claim, *outcome, records) for claim, outcome in zip(claim_list, measured, strict=True)]


def _what_is_there(records: list[dict], in_domain: dict[str, list]) -> set[str]:
    """What claims may need, see `Claim.needs`: arms, steps, merges of task vectors, accuracy on in-domain tasks."""
    tuned = [model for record in of_step(records, "finetuning") for model in record["metrics"]["arms"].items()]
    own = tasks_of_domains(in_domain)
    answered = any("accuracy" in score for _, model in tuned for task, score in model["scores"].items() if task in own)
    merges = of_step(records, "merging")
    vectors = bool(merges) and all("task_vectors" in merge["metrics"] for merge in merges)
    named = {"in-domain accuracy": answered, "task_vectors": vectors}
    return {record["step"] for record in records} | {arm for arm, _ in tuned} | {name for name in named if named[name]}


def _correct(parts: list[dict]) -> None:
    """Add the corrected p-values of one family of tests."""
    tests = [(part, name) for part in parts for name in ("p", "p_size") if part[name] is not None]
    for (part, name), p in zip(tests, holm([part[name] for part, name in tests]), strict=True):
        part[f"{name}_holm"] = p


def _measured(claim: Claim, records: list[dict]) -> tuple[list[dict], str]:
    """A claim's measured parts, or none and what is lacking."""
    try:
        return [_measure(part, records) for part in claim.parts], ""
    except Missing as lacking:
        return [], str(lacking)


def _measure(part: Part, records: list[dict]) -> dict:
    measured = {"what": part.what, "side": part.side, "size": part.size, "p_holm": None, "p_size_holm": None}
    measured |= part.measure(records, null=0.0)
    return measured | {"p_size": part.measure(records, null=part.side * part.size)["p"] if part.size else None}


def _verdict(part: dict) -> str:
    towards = part["side"] * part["estimate"]
    if part["p"] is None:  # exact: right if it prints as published
        return HOLDS if f"{towards:.4f}" == f"{part['size']:.4f}" else FAILS
    if _too_few_seeds(part) or _never_differs(part):
        return OPEN
    if _too_small(part):
        return FAILS
    if part["p_holm"] < LEVEL:
        return HOLDS if towards > 0 else FAILS
    return OPEN


def _too_few_seeds(part: dict) -> bool:
    """Whether a training, or a draw of layers, was seen too few times; `fixed` parts have neither."""
    return part["seeds"] < SEEDS_NEEDED and not part.get("fixed")


def _never_differs(part: dict) -> bool:
    """Whether all values are the same, up to rounding: the same model on both sides says nothing of the arms."""
    return part["se"] < 1e-12


def _too_small(part: dict) -> bool:
    """Whether the estimate is significantly smaller than the published size."""
    return bool(part["size"]) and part["side"] * part["estimate"] < part["size"] and part["p_size_holm"] < LEVEL


def _answer(claim: Claim, parts: list[dict], lacking: str, records: dict[str, dict]) -> dict:
    answer = {name: getattr(claim, name) for name in ("key", "claim", "source", "unit", "primary", "favours")}
    shared = {"parts": parts, "records": [name for name, r in records.items() if r["step"] in claim.steps]}
    if not parts:
        why = f"{lacking[0].upper()}{lacking[1:]}."
        return answer | {"verdict": OPEN, "why": why} | dict.fromkeys(_NUMBERS) | {"n": None} | shared
    verdicts = [_verdict(part) for part in parts]
    verdict = FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else OPEN
    decisive = [part for part, judged in zip(parts, verdicts, strict=True) if judged == verdict]
    deciding = max(decisive, key=lambda part: part["p"] or 0)  # of several the least certain
    answer |= {"verdict": verdict, "why": _why(deciding, claim.unit, verdict)}
    answer |= {name: deciding[name] for name in _NUMBERS}
    return answer | {"n": {"seeds": deciding["seeds"], "documents": deciding["documents"]}} | shared


def with_interval(measured: dict, unit: str) -> str:
    """An estimate with its unit and interval, as text."""
    middle, low, high = (amount(value, unit) for value in (measured["estimate"], *measured["interval"]))
    return f"{middle} {unit} [{low}, {high}]"


def _why(part: dict, unit: str, verdict: str) -> str:
    """What was measured, and why that decides it, or does not."""
    if part["p"] is None:
        return f"{part['what'].capitalize()}, {part['where']}: {100 * part['estimate']:.2f} %, counted, not estimated."
    start = f"{part['what'][0].upper()}{part['what'][1:]}, {part['where']}: {with_interval(part, unit)}, "
    start += f"p = {part['p']:.2g} ({part['p_holm']:.2g} after Holm's correction). "
    if _too_few_seeds(part):
        return (
            f"{start}Training seeds: {part['seeds']}; fewer than {SEEDS_NEEDED} do not show how far another moves it."
        )
    if verdict == FAILS and _too_small(part):
        return f"{start}Significantly less than the published {amount(part['side'] * part['size'], unit)}."
    if _never_differs(part):
        return f"{start}No document's score differs, so there is nothing to test with."
    if verdict == OPEN:
        detectable = amount(part["detectable"], unit).lstrip("+")
        design = f"{start}The design finds differences of {detectable} {unit} or more in four cases of five."
        return f"{design} {_settled_by(part)}"
    return f"{start}All on {'the claimed' if verdict == HOLDS else 'the other'} side of 0."


def _settled_by(part: dict) -> str:
    """The least sizes of a study that would find a difference as small as the measured one in four cases of five.

    As all that is detectable, this is before the correction for several questions.
    """
    if abs(part["estimate"]) >= part["detectable"]:
        return "The measured one is as large: what leaves it open is the correction for several questions."
    sizes = sizes_for(part, abs(part["estimate"]))
    ways = [f"{sizes['documents']:,} documents"] if sizes["documents"] else []
    ways += [f"{sizes['seeds']:,} seeds"] if sizes["seeds"] else []
    ways += ["{} seeds and {:,} documents".format(*sizes["both"])] if sizes["both"] else []
    if not ways:
        return "One as small as the measured one is out of reach of a thousand times the documents or seeds."
    return f"One as small as the measured one takes {' or '.join(ways)}, before that correction."
