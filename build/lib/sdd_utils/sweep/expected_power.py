"""Which differences a study can expect to detect, from the variances of a committed one, before it is begun.

The variances are those of `results/<study>/`, where the study was run before, else of its pilot,
`results/<study>-pilot/`, else of the embedded study. A pilot of one training seed knows nothing of seeds: theirs are
then those of another committed study of the same model. Seeds and cells (block size x data set) of the comparison are
the planned ones. Its documents are scaled by how much less the mean over the planned tasks varies than that over the
measured ones, were all documents alike. With more cells than were measured the estimate errs on the safe side, with
fewer on the other: how much cells share of documents is not kept.
"""

from pathlib import Path

import tabulate

from sdd_utils import ROOT
from sdd_utils.analysis.forgetting import tasks_of_domains
from sdd_utils.analysis.power import FEWEST_SEEDS, detectable
from sdd_utils.analysis.verdicts import SEEDS_NEEDED
from sdd_utils.base.number_format import amount
from sdd_utils.base.records import read_record
from sdd_utils.sweep import token_lengths

RESULTS, ELSE = ROOT / "results", "embedded"
_COMPARED = ("sft", "self_data_ft")
_ALSO = ("recovers_more", "recovers_more_probability")  # claims that are shown beside the primary ones


def report(study, *, name: str, seeds_of: str = "", results: Path = RESULTS, style: str = "simple") -> str:
    """The detectable difference of every primary comparison and of recovery, as text; or why it is not known.

    Args:
        study: its keys.
        name: that of its folder under `results`.
        seeds_of: the study under `results` whose seeds vary as those that were not measured; by default the first one
            of the same model.
        style: of the table, see tabulate.
    """
    source = next((own for own in (name, f"{name}-pilot") if _record(results, own).is_file()), ELSE)
    if not set(_COMPARED) <= set(study.arms):
        return "detectable differences: unknown, as the study has not both SFT and Self-Data FT to compare"
    try:
        record = read_record(_record(results, source))
    except (FileNotFoundError, ValueError) as error:
        return f"detectable differences: unknown, as results/{source} holds no variances: {error}"
    folders = [results / seeds_of] if seeds_of else sorted(results.iterdir())
    entries, seeds_of = _with_seeds(record["metrics"]["power"], study.model, folders=folders)
    lines = [_line(study, entry, record) for entry in entries if _is_shown(entry)]
    if not lines:
        return f"detectable differences: unknown, as results/{source} measured none of the comparisons"
    table = tabulate.tabulate(lines, headers="keys", tablefmt=style, disable_numparse=True, colalign=_ALIGN)
    basis = f"results/{source}" + (f", of seeds those of results/{seeds_of}" if seeds_of else "")
    basis += ", another study" if source == ELSE != name else ""
    basis += ", so this is a guess" if source != name else ""
    return f"{_heading(study, basis)}\n\n{table}"


_ALIGN = ("left", "right", "left")


def _record(results: Path, study: str) -> Path:
    return results / study / "records" / "results.json"


def _with_seeds(entries: list[dict], model: str, *, folders: list[Path]) -> tuple[list[dict], str]:
    """The comparisons, those of one seed with the seeds' variances of another study of the model; and its name."""
    lacking = [entry for entry in entries if entry["seeds"] < FEWEST_SEEDS]
    for folder in folders if lacking else ():
        others = _comparisons(folder, model)
        if all(entry["key"] in others for entry in lacking if _is_shown(entry)):
            return [_joined(entry, others.get(entry["key"], entry)) for entry in entries], folder.name
    return entries, ""


def _comparisons(folder: Path, model: str) -> dict[str, dict]:
    """A committed study's comparisons over several seeds, by key; none of another model or an older schema."""
    try:
        original, made = (read_record(folder / "records" / f"{name}.json") for name in ("pruning-n0", "results"))
    except (FileNotFoundError, ValueError):
        return {}
    entries = made["metrics"]["power"] if original["params"]["model"] == model else []
    return {entry["key"]: entry for entry in entries if entry["seeds"] >= FEWEST_SEEDS}


def _joined(entry: dict, other: dict) -> dict:
    """`entry` with the seeds of `other`, and their part of the variance, as it were with the documents of `entry`."""
    if entry["seeds"] >= FEWEST_SEEDS:
        return entry
    interaction = other["interaction_se"] ** 2 * other["documents"] / entry["documents"]
    by_seed = other["seed_se"] ** 2 - other["interaction_se"] ** 2 + interaction
    seeds = {"seed_se": by_seed**0.5, "interaction_se": interaction**0.5}
    df = entry["df"] | {"seeds": other["df"]["seeds"]}
    return entry | seeds | {"df": df, "seeds": other["seeds"], "cells": other["cells"]}


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
    outside = entry["unit"] == "% of the loss"  # of tasks out of every domain
    more = _evened(_planned(study, outside=outside)) / _evened(_measured(record, outside=outside))
    found = detectable(entry, seeds=_seeds(study), documents=more * entry["documents"], cells=_cells(study))
    unit = entry["unit"] + (", seeds apart: one was measured" if entry["seeds"] < FEWEST_SEEDS else "")
    return {"comparison": entry["what"], "detectable": amount(found, entry["unit"]).lstrip("+"), "unit": unit}


def _seeds(study) -> int:
    return max(len(study.seeds), SEEDS_NEEDED)


def _cells(study) -> int:
    return len(study.finetune_block_sizes) * len(study.data_sets)


def _planned(study, *, outside: bool = False) -> list[int]:
    """Documents by task, of all tasks or of those that are of no domain."""
    tasks = _chosen([*study.tasks], study.in_domain, outside=outside)
    return [token_lengths.documents_of(study, task) for task in tasks]


def _measured(record: dict, *, outside: bool) -> list[int]:
    (original,) = (row["scores"] for row in record["metrics"]["grid"] if row["arm"] == "original")
    tasks = _chosen([*original], record["params"].get("in_domain", {}), outside=outside)
    return [original[task]["n"] for task in tasks]


def _chosen(tasks: list[str], in_domain: dict[str, list], *, outside: bool) -> list[str]:
    own = tasks_of_domains(in_domain)
    return [task for task in tasks if not (outside and task in own)] or tasks


def _evened(documents: list[int]) -> float:
    """Documents by task as the total of equally large tasks whose mean varies as much: tasks^2 / sum(1 / documents)."""
    return len(documents) ** 2 / sum(1 / n for n in documents)
