"""Which differences a study can expect to detect, from the variances of a committed one, before it is begun.

The variances are those of `results/<study>/`, where the study was run before, else those of the embedded study. Seeds
and cells (block size x data set) of the comparison are the planned ones. Its documents are scaled by how much less the
mean over the planned tasks varies than that over the measured ones, were all documents alike. With more cells than were
measured the estimate errs on the safe side, with fewer on the other: how much cells share of documents is not kept.
"""

from pathlib import Path

import tabulate

from sdd_utils import ROOT
from sdd_utils.analysis.power import FEWEST_SEEDS, detectable
from sdd_utils.analysis.verdicts import SEEDS_NEEDED
from sdd_utils.base.number_format import amount
from sdd_utils.base.records import read_record
from sdd_utils.sweep import token_lengths

RESULTS, ELSE = ROOT / "results", "embedded"
_COMPARED = ("sft", "self_data_ft")
_ALSO = ("recovers_more",)  # claims that are shown beside the primary ones


def report(study, *, name: str, results: Path = RESULTS) -> str:
    """The detectable difference of every primary comparison and of recovery, as text; or why it is not known.

    Args:
        study: its keys.
        name: that of its folder under `results`.
    """
    source = name if (results / name / "records" / "results.json").is_file() else ELSE
    if not set(_COMPARED) <= set(study.arms):
        return "detectable differences: unknown, as the study has not both SFT and Self-Data FT to compare"
    try:
        record = read_record(results / source / "records" / "results.json")
    except (FileNotFoundError, ValueError) as error:
        return f"detectable differences: unknown, as results/{source} holds no variances: {error}"
    lines = [_line(study, entry, record) for entry in record["metrics"]["power"] if _is_shown(entry)]
    if not lines:
        return f"detectable differences: unknown, as results/{source} measured none of the comparisons"
    table = tabulate.tabulate(lines, headers="keys", tablefmt="simple", disable_numparse=True, colalign=_ALIGN)
    basis = f"results/{source}" + ("" if source == name else ", another study, so this is a guess")
    return f"{_heading(study, basis)}\n\n{table}"


_ALIGN = ("left", "right", "left")


def _is_shown(entry: dict) -> bool:
    return entry["primary"] or entry["key"] in _ALSO


def _heading(study, basis: str) -> str:
    documents = f"{sum(_planned(study)):,} documents"
    size = f"{_seeds(study)} seeds, {_cells(study)} cells (block size x data set) and {documents}"
    heading = f"Detectable differences (80 % power, 5 %) with {size}; variances of {basis}"
    if len(study.seeds) < SEEDS_NEEDED:
        heading += f"\n{len(study.seeds)} seed(s), as the study has, leave every claim about training inconclusive"
    return heading


def _line(study, entry: dict, record: dict) -> dict:
    more = _evened(_planned(study)) / _evened(_measured(record))
    found = detectable(entry, seeds=_seeds(study), documents=more * entry["documents"], cells=_cells(study))
    unit = entry["unit"] + (", seeds apart: one was measured" if entry["seeds"] < FEWEST_SEEDS else "")
    return {"comparison": entry["what"], "detectable": amount(found, entry["unit"]).lstrip("+"), "unit": unit}


def _seeds(study) -> int:
    return max(len(study.seeds), SEEDS_NEEDED)


def _cells(study) -> int:
    return len(study.finetune_block_sizes) * len(study.data_sets)


def _planned(study) -> list[int]:
    return [token_lengths.documents_of(study, task) for task in study.tasks]


def _measured(record: dict) -> list[int]:
    (original,) = (row for row in record["metrics"]["grid"] if row["arm"] == "original")
    return [score["n"] for score in original["scores"].values()]


def _evened(documents: list[int]) -> float:
    """Documents by task as the total of equally large tasks whose mean varies as much: tasks^2 / sum(1 / documents)."""
    return len(documents) ** 2 / sum(1 / n for n in documents)
