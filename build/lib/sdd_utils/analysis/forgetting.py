"""In-domain and out-of-domain apart: what a model gained where it was trained, and what it forgot elsewhere.

Which tasks are a data set's own domain is the study's to say (`in_domain`); every other task is out of its domain.
"""

from sdd_utils.analysis.statistics import (
    BITS,
    average_score,
    averaged_tasks,
    document_values,
    estimate,
    estimate_ratio,
    healed_parts,
    recovery_parts,
    shows_loss,
)
from sdd_utils.data.arms import ARMS


def parted(tasks: list[str], data_set: str, in_domain: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """The tasks of a data set's own domain, and the others."""
    inside = [task for task in tasks if task in in_domain.get(data_set, [])]
    return inside, [task for task in tasks if task not in inside]


def tasks_of_domains(in_domain: dict[str, list[str]]) -> set[str]:
    """The tasks that are of the domain of any data set."""
    return {task for tasks in in_domain.values() for task in tasks}


def with_domains(rows: list[dict], original: dict[str, dict], in_domain: dict[str, list[str]]) -> list[dict]:
    """The rows of `model_grid.model_grid`, those of fine-tuned models with five keys more.

    `in_domain` and `out_of_domain` are {tasks, recovery, interval} over the averaged tasks of either kind;
    `healed_in_domain` and `healed_out_of_domain` {tasks, share, interval}, the healed share of bits per byte;
    `forgetting` {value, interval}: the mean accuracy that the pruned model has before fine-tuning on the averaged
    tasks out of domain, minus this model's. Positive means forgot. Each is None where there is no such task; a recovery
    also where the original scores 0, a healed share also where pruning's loss is not clear of 0.
    """
    pruned = {row["block_size"]: row["scores"] for row in rows if row["arm"] == "no_ft"}
    return [
        row | _domains(row, original, pruned[row["block_size"]], in_domain) if row["arm"] in ARMS else row
        for row in rows
    ]


def _domains(row: dict, original: dict, pruned: dict, in_domain: dict) -> dict:
    scores, data_set = list(row["by_seed"].values()), row["data_set"]
    inside, outside = parted(averaged_tasks(original), data_set, in_domain)
    bits_inside, bits_outside = parted(averaged_tasks(original, measure=BITS), data_set, in_domain)
    return {
        "in_domain": _recovery(scores, original, inside),
        "out_of_domain": _recovery(scores, original, outside),
        "healed_in_domain": _healed(scores, original, pruned, bits_inside),
        "healed_out_of_domain": _healed(scores, original, pruned, bits_outside),
        "forgetting": _forgetting(scores, pruned, outside),
    }


def _recovery(scores: list[dict], original: dict, tasks: list[str]) -> dict | None:
    if not tasks or average_score(original, tasks=tasks) == 0:
        return None
    estimated = estimate_ratio(*recovery_parts(scores, original, tasks=tasks))
    return {"tasks": tasks, "recovery": estimated["estimate"], "interval": estimated["interval"]}


def _healed(scores: list[dict], original: dict, pruned: dict, tasks: list[str]) -> dict | None:
    tops, losses = healed_parts(scores, original, pruned, tasks=tasks)
    if not tasks or not shows_loss(losses):
        return None
    estimated = estimate_ratio(tops, losses)
    return {"tasks": tasks, "share": estimated["estimate"], "interval": estimated["interval"]}


def _forgetting(scores: list[dict], pruned: dict, tasks: list[str]) -> dict | None:
    """Mean over tasks of the mean difference per document."""
    if not tasks:
        return None
    estimated = estimate([-document_values(scores, task, minus=[pruned] * len(scores)) for task in tasks])
    return {"value": estimated["estimate"], "interval": estimated["interval"]}
