"""Whether a run gives the numbers of the committed results: job by job, number by number, from the records alone.

Where machine, versions and precision of all records are the same, numbers must be the same to the last bit. Elsewhere
rounding differs, and with it trained weights and sampled texts. Then two numbers agree if they differ by no more than a
tolerance, which follows from what the records hold (for the kinds see `record_numbers`):

    exact      none. A block is right as well where it and the committed one tie within rounding; what was made of
               another block is not compared.
    rounded    the sum of both precisions' machine epsilons times what `ROUNDINGS` says
    paired     Student's t times the standard error of the paired differences, and on top what rounding may move all
               documents of a task together: both models have the same weights, only rounding parts them
    sampled    what two samples of that size differ by: a mean reaches as far as its standard error times Student's t,
               a share as far as Wilson's interval, and the reaches of the two add in squares (for shares that is
               Newcombe's interval of a difference)
    following  compared where the last bit is, and only there

The 95 % hold for all paired and sampled numbers of a comparison together (Bonferroni), as one answer is given for all:
of twenty honest reruns, nineteen name nothing.

A trained model answers the same documents in both runs as well, so why not by pairs? Paired differences ask whether
two models are the same, and these are not. Rounding leads a training elsewhere, texts are sampled anew, and either
moves all documents of a model together, as a seed does. The spread between documents does not show that common move, so
with enough documents the smallest one would count as significant. The standard error that is recorded asks the right
question: whether both runs say the same, as far as either claims to know it. As the documents are the same, that errs
towards agreement: it finds a wrong number, not one that is a little off.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import ndtri, stdtrit

from sdd_utils.analysis.record_numbers import FOLLOWING, PAIRED, ROUNDED, SAMPLED, Number, numbers_of
from sdd_utils.base.records import SCHEMA, device_of, read_record
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.paths import shown
from sdd_utils.study.schema import load_study

NO_REFERENCE = (
    "there are no committed results of {study} to compare with: 'make publish STUDY={study}' makes a finished run so"
)
LEVEL = 0.05  # of all paired and sampled numbers together
SHOWN = 10  # numbers and jobs that are named
EPSILON = {"bfloat16": 2.0**-7, "float32": 2.0**-23}
# By how many epsilons of each precision a rounded number may move. A state after l layers is off by about u sqrt(2 l)
# of its length, with u half an epsilon: the two additions of a layer round independently, so errors add in squares
# (Higham and Mary 2019). Only the part along the arc moves an angle, and one direction of H holds 1 / sqrt(H) of an
# error; as models are wider than 16 times their depth, that is less than half a u. An epsilon has room for the largest
# of a map's numbers, and for what errors across the arc add to small angles. Distances are angles / pi, a cosine moves
# by no more than its angle, and a mean log-likelihood in proportion to its logits. SmolLM2 moves by 0.3 of it at most.
ROUNDINGS = {"map": 1 / np.pi, "distance": 1 / np.pi, "block_influence": 1.0, "original": 1.0}
_DIGITS = 1e-6  # records hold distances to six digits
_OF_THE_RUN = ("study", "run", "record_names")  # parameters that change no number


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A number of both runs; of several that are compared as one, the pair that is furthest apart.

    Attributes:
        name: job and place in its metrics.
        ours, committed: None where a run has no such number.
        tolerance: the largest difference that agrees.
        near: whether they would agree were the machine another.
    """

    name: str
    ours: float | None
    committed: float | None
    tolerance: float = 0.0
    agrees: bool = False
    near: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out.

    Attributes:
        same: whether machine, versions and precision are the same, so that every bit must be.
        left: why jobs could not be compared, by job.
        apart: jobs that are about other layers than the committed ones, so that their numbers say nothing.
        made: how either run was made, in words.
    """

    numbers: list[Compared]
    left: dict[str, str]
    apart: list[str]
    same: bool
    made: str

    @property
    def agrees(self) -> bool:
        """Whether all numbers agree and no job is missing."""
        return not self.left and all(number.agrees for number in self.numbers)

    def text(self) -> str:
        """One line, and a line each for what does not agree."""
        wrong = [number for number in self.numbers if not number.agrees]
        how = "to the last bit (same machine, versions and precision)" if self.same else "within tolerance"
        agreeing = len(self.numbers) - len(wrong)
        lines = [f"compared with the committed results: {agreeing} of {len(self.numbers)} numbers agree {how}"]
        lines += _first([_in_words(number) for number in wrong])
        if self.same and wrong:
            lines += [f"  {sum(number.near for number in wrong)} of these agree within the tolerance of other machines"]
        lines += _first([f"{job}: {why}" for job, why in self.left.items()])
        lines += [f"  not compared, as other layers are removed: {', '.join(self.apart)}"] if self.apart else []
        return "\n".join([*lines, *([] if self.agrees else [f"  {self.made}"])])


def _first(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"  {line}" for line in [*lines[:SHOWN], *more]]


def _in_words(number: Compared) -> str:
    if number.ours is None or number.committed is None:
        return f"{number.name}: only {'committed' if number.ours is None else 'here'}"
    values = f"{number.ours:.6g}, committed {number.committed:.6g}"
    return f"{number.name}: {values}, tolerance {number.tolerance:.2g}"


def records_of(folder: Path, *, names: Iterable[str] | None = None) -> dict[str, dict]:
    """The records of a folder by the name of their job.

    Args:
        names: of the jobs that count; None is all.

    Raises:
        FileNotFoundError: there are none.
        ValueError: one is of another schema, or none at all.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if names is None or path.stem in names]
    if not paths:
        raise FileNotFoundError(f"{shown(folder)} holds no records: run 'make reproduce' first")
    schemas = {json.loads(path.read_text("utf-8")).get("schema") for path in paths} - {SCHEMA}
    if schemas:
        raise ValueError(f"{shown(folder)} holds records of schema {schemas.pop()}, this version writes {SCHEMA}")
    return {path.stem: read_record(path) for path in paths}


def compare_run(study: str, *, run: Path, results: Path) -> Comparison:
    """Compare all of a study's jobs in the folder of a run with the committed ones. Raises what `records_of` raises."""
    names = {job.name for job in study_jobs(load_study(study))}
    return compare(records_of(run / "records", names=names), records_of(results / "records"))


def compare(ours: Mapping[str, dict], committed: Mapping[str, dict]) -> Comparison:
    """Compare records, both by the name of their job."""
    left = {name: "only committed" for name in committed if name not in ours}
    left |= {name: "only here" for name in ours if name not in committed}
    for name in ours.keys() & committed.keys():
        if other := _other_parameters(ours[name]["params"], committed[name]["params"]):
            left[name] = f"made with other parameters, {', '.join(other)}"
    both = [name for name in ours if name in committed and name not in left]
    moved = _moved_blocks(ours, committed)
    apart = [name for name in both if _follows(ours[name], moved) or _other_layers(ours[name], committed[name])]
    pairs = {name: (ours[name], committed[name]) for name in both if name not in apart}
    same = bool(pairs) and all(_made_alike(*pair) for pair in pairs.values())
    made = f"made by {_made_by(committed)}; this run by {_made_by(ours)}"
    return Comparison(numbers=_compared(pairs, same=same), left=left, apart=apart, same=same, made=made)


def _other_parameters(ours: dict, committed: dict) -> list[str]:
    """Those that both have, as others came or went with the code."""
    names = sorted((ours.keys() & committed.keys()) - {*_OF_THE_RUN})
    return [name for name in names if ours[name] != committed[name]]


def _blocks(records: Mapping[str, dict]) -> dict[int, int]:
    """The start of the block that was chosen, by its size."""
    chosen = records["similarity"]["metrics"]["blocks"] if "similarity" in records else []
    return {block["block_size"]: block["start"] for block in chosen}


def _moved_blocks(ours: Mapping[str, dict], committed: Mapping[str, dict]) -> set[int]:
    """The block sizes for which both runs chose blocks, and not the same."""
    here, there = _blocks(ours), _blocks(committed)
    return {n for n in here.keys() & there.keys() if here[n] != there[n]}


def _follows(record: dict, moved: set[int]) -> bool:
    """Whether a record is about one of these block sizes; that of 09 is about all of them."""
    return bool(moved) and (record["params"].get("block_size") in moved or record["step"] == "results")


def _other_layers(ours: dict, committed: dict) -> bool:
    """Whether strategies chose other layers in both runs, as where Block Influences tie within rounding."""
    if ours["step"] != "selection":
        return False
    ours, committed = ([model["removed"] for model in record["metrics"]["models"]] for record in (ours, committed))
    return ours != committed


def _made_alike(ours: dict, committed: dict) -> bool:
    keys = ("device", "dtype", "threads", "versions")
    alike = all(ours["provenance"][key] == committed["provenance"][key] for key in keys)
    return alike and _engines(ours["metrics"]) == _engines(committed["metrics"])


def _engines(node) -> set[str]:
    """What generated texts and scored, wherever the metrics name it."""
    if isinstance(node, list):
        return set().union(*map(_engines, node))
    if not isinstance(node, dict):
        return set()
    own = {node["engine"]} if isinstance(node.get("engine"), str) else set()
    return own.union(*map(_engines, node.values()))


def _made_by(records: Mapping[str, dict]) -> str:
    made = [record["provenance"] for record in records.values()]
    return ", ".join(sorted({f"{one['commit'][:8] or 'no commit'} on {device_of(one)}" for one in made}))


def _compared(pairs: dict[str, tuple[dict, dict]], *, same: bool) -> list[Compared]:
    found = {job: [numbers_of(record) for record in pair] for job, pair in pairs.items()}
    tested = sum(number.kind in (PAIRED, SAMPLED) for ours, _ in found.values() for number in ours.values())
    level = LEVEL / max(tested, 1)
    compared = []
    for job, (ours, committed) in found.items():
        epsilons = [EPSILON[record["provenance"]["dtype"]] for record in pairs[job]]
        for name in dict.fromkeys([*ours, *committed]):
            pair = _filled(ours.get(name), committed.get(name))
            if FOLLOWING in [number.kind for number in pair if number is not None] and not same:
                continue
            compared.append(_compare(f"{job} {name}", *pair, epsilons=epsilons, level=level, same=same))
    if "similarity" in pairs and not same:
        tied = {f"similarity blocks.{n}.start" for n in _ties(*pairs["similarity"])}
        compared = [replace(number, agrees=True) if number.name in tied else number for number in compared]
    return compared


def _ties(*pair: dict) -> set[int]:
    """The block sizes whose two choices tie within rounding in both maps: each may have moved by the tolerance."""
    reach = 2 * _rounding("map", [EPSILON[record["provenance"]["dtype"]] for record in pair])
    starts = [_blocks({"similarity": record}) for record in pair]
    maps = [record["metrics"]["map"] for record in pair]
    sizes = starts[0].keys() & starts[1].keys()
    return {n for n in sizes if all(abs(np.subtract(*(m[s[n]][s[n] + n] for s in starts))) <= reach for m in maps)}


def _rounding(key: str, epsilons: list[float], *, size: float = 1.0) -> float:
    return sum(epsilons) * ROUNDINGS[key] * size + _DIGITS


def _filled(*pair: Number | None) -> list[Number | None]:
    """A reason that no row of a set had is none of its shares: it is 0 there."""
    there = next(number for number in pair if number is not None)
    return [replace(there, value=np.zeros(())) if number is None and there.n else number for number in pair]


def _compare(
    name: str, ours: Number | None, committed: Number | None, *, epsilons: list[float], level: float, same: bool
) -> Compared:
    if ours is None or committed is None or _shapes(ours) != _shapes(committed):
        values = [None if number is None else float(number.value.flat[0]) for number in (ours, committed)]
        return Compared(name=name, ours=values[0], committed=values[1])
    distances = np.abs(ours.value - committed.value)
    at = np.unravel_index(np.argmax(distances), distances.shape)
    near = _tolerance(name, ours, committed, epsilons=epsilons, level=level)
    tolerance = 0.0 if same else near
    return Compared(
        name=name + "".join(f"[{index}]" for index in at),
        ours=float(ours.value[at]),
        committed=float(committed.value[at]),
        tolerance=tolerance,
        agrees=bool((distances <= tolerance).all()),
        near=bool((distances <= near).all()),
    )


def _shapes(number: Number) -> tuple:
    return number.kind, number.value.shape, np.shape(number.documents)


def _tolerance(name: str, ours: Number, committed: Number, *, epsilons: list[float], level: float) -> float:
    """The largest difference that agrees on two machines."""
    if ours.kind == ROUNDED:
        key = name.rpartition(".")[2].rpartition(" ")[2]
        return _rounding(key, epsilons, size=float(committed.value) if key == "original" else 1.0)
    if ours.kind == PAIRED:
        differences = ours.documents - committed.documents
        se = differences.std(ddof=1) / np.sqrt(len(differences))
        return float(stdtrit(ours.df, 1 - level / 2) * se) + sum(epsilons) * abs(float(committed.value))
    if ours.kind == SAMPLED:
        share = ours.n > 0 and committed.n > 0
        toward = float(np.sign(committed.value - ours.value))
        reaches = [_reach(ours, toward, level=level, share=share), _reach(committed, -toward, level=level, share=share)]
        return float(np.hypot(*reaches))
    return 0.0


def _reach(number: Number, toward: float, *, level: float, share: bool) -> float:
    """How far a number's interval at 1 - level reaches up (1) or down (-1)."""
    if not share:
        return float(stdtrit(number.df, 1 - level / 2) * number.se)
    z, n, p = ndtri(1 - level / 2), number.n, float(number.value)
    middle = (p + z**2 / 2 / n) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2) / (1 + z**2 / n)
    return float(toward * (middle - p) + half)
