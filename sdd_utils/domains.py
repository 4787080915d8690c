"""In-domain and out-of-domain apart: what a model gained where it was trained, and what it forgot elsewhere.

Which tasks are a data set's own domain is the study's to say (`in_domain`); every other task is out of its domain.
"""

import numpy as np

from sdd_utils.arms import ARMS
from sdd_utils.results import average, averaged_tasks, bootstrap_recovery, interval, recovery


def with_domains(rows: list[dict], original: dict[str, dict], in_domain: dict[str, list[str]]) -> list[dict]:
    """The rows of `grid.grid`, those of fine-tuned models with three keys more.

    `in_domain` and `out_of_domain` are {tasks, recovery, interval} over the averaged tasks of either kind, and
    `forgetting` is {value, interval}: the mean score, 0..1, that the pruned model has before fine-tuning on the tasks
    out of domain, minus this model's. Positive means forgot. Each is None where there is no such task; a recovery
    also where the original scores 0. Intervals resample documents, the same ones for all models.
    """
    pruned = {row["block_size"]: row["scores"] for row in rows if row["arm"] == "no_ft"}
    return [
        row | _domains(row, original, pruned[row["block_size"]], in_domain) if row["arm"] in ARMS else row
        for row in rows
    ]


def _domains(row: dict, original: dict, pruned: dict, in_domain: dict) -> dict:
    tasks = averaged_tasks(original)
    own = [task for task in tasks if task in in_domain.get(row["data_set"], [])]
    others = [task for task in tasks if task not in own]
    return {
        "in_domain": _recovery(row["scores"], original, own),
        "out_of_domain": _recovery(row["scores"], original, others),
        "forgetting": _forgetting(row["scores"], pruned, others),
    }


def _recovery(scores: dict, original: dict, tasks: list[str]) -> dict | None:
    ours, theirs = ({task: each[task] for task in tasks} for each in (scores, original))
    if not tasks or average(theirs) == 0:
        return None
    draws = bootstrap_recovery(ours, theirs)
    return {"tasks": tasks, "recovery": recovery(ours, theirs), "interval": interval(draws)}


def _forgetting(scores: dict, pruned: dict, tasks: list[str], *, draws: int = 2000) -> dict | None:
    """Mean over tasks of the mean difference per document, resampled within each task."""
    if not tasks:
        return None
    rng, resampled, values = np.random.default_rng(0), np.zeros(draws), []
    for task in tasks:
        lost = np.subtract(pruned[task]["documents"], scores[task]["documents"], dtype=float)
        counts = rng.multinomial(len(lost), [1 / len(lost)] * len(lost), size=draws) / len(lost)
        resampled += counts @ lost / len(tasks)
        values.append(pruned[task]["value"] - scores[task]["value"])
    return {"value": float(np.mean(values)), "interval": interval(resampled)}
