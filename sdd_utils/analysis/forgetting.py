"""In-domain and out-of-domain apart: what a model gained where it was trained, and what it forgot elsewhere.

Which tasks are a data set's own domain is the study's to say (`in_domain`); every other task is out of its domain.
"""

from sdd_utils.analysis.statistics import average_score, averaged_tasks, document_values, estimate, recovery_values
from sdd_utils.data.arms import ARMS


def with_domains(rows: list[dict], original: dict[str, dict], in_domain: dict[str, list[str]]) -> list[dict]:
    """The rows of `model_grid.model_grid`, those of fine-tuned models with three keys more.

    `in_domain` and `out_of_domain` are {tasks, recovery, interval} over the averaged tasks of either kind, and
    `forgetting` is {value, interval}: the mean score, 0..1, that the pruned model has before fine-tuning on the tasks
    out of domain, minus this model's. Positive means forgot. Each is None where there is no such task; a recovery
    also where the original scores 0. Intervals are over documents and seeds, see `statistics.estimate`.
    """
    pruned = {row["block_size"]: row["scores"] for row in rows if row["arm"] == "no_ft"}
    return [
        row | _domains(row, original, pruned[row["block_size"]], in_domain) if row["arm"] in ARMS else row
        for row in rows
    ]


def _domains(row: dict, original: dict, pruned: dict, in_domain: dict) -> dict:
    tasks = averaged_tasks(original)
    inside = [task for task in tasks if task in in_domain.get(row["data_set"], [])]
    outside = [task for task in tasks if task not in inside]
    return {
        "in_domain": _recovery(row["by_seed"], original, inside),
        "out_of_domain": _recovery(row["by_seed"], original, outside),
        "forgetting": _forgetting(row["by_seed"], pruned, outside),
    }


def _recovery(by_seed: dict[int, dict], original: dict, tasks: list[str]) -> dict | None:
    reference = {task: original[task] for task in tasks}
    if not tasks or average_score(reference) == 0:
        return None
    estimated = estimate(recovery_values(list(by_seed.values()), reference))
    return {"tasks": tasks, "recovery": estimated["estimate"], "interval": estimated["interval"]}


def _forgetting(by_seed: dict[int, dict], pruned: dict, tasks: list[str]) -> dict | None:
    """Mean over tasks of the mean difference per document."""
    if not tasks:
        return None
    scores = list(by_seed.values())
    estimated = estimate([-document_values(scores, task, minus=[pruned] * len(scores)) for task in tasks])
    return {"value": estimated["estimate"], "interval": estimated["interval"]}
