"""Which names of lm-eval are tasks with a value per document, so that models can be compared document by document.

Decided from lm-eval's index of task files alone: nothing is downloaded. Tags, groups that average nothing, and scores
over all documents at once (Matthews' correlation, corpus BLEU) are none.
"""

from collections.abc import Iterator
from pathlib import Path

from lm_eval.api import metrics, registry

# What a task reports of texts that are scored whole: the log-likelihood of each, which becomes bits per byte.
LIKELIHOODS = ("gold_bits_per_byte", "bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity")
# Of the metrics a task reports, the first of these stands for it.
_PREFERRED = ("acc_norm", "exact_match", "acc", *LIKELIHOODS)
_PREFERRED_FILTERS = ("none", "flexible-extract")
# What Open LLM Leaderboard v1 counted; `all` has both. Its examples show the ending that it asks for.
_LEADERBOARD_FILTERS = {"gsm8k": "strict-match"}
_MOST_NAMED = 8


def primary(task: str, reported: list[str], *, shots: int | None = None) -> tuple[str, str]:
    """The metric and the filter that stand for a task, of those that it reports as "metric,filter".

    Args:
        shots: few-shot examples. Without one nothing tells a model to end on GSM8K's "#### 5", which its strict filter
            reads, so the last number of an answer counts.
    """
    keys = [tuple(key.split(",", 1)) for key in reported]
    strict = task in _LEADERBOARD_FILTERS and shots != 0
    filters = (_LEADERBOARD_FILTERS[task],) if strict else _PREFERRED_FILTERS
    ranked = [(metric, filter_) for metric in _PREFERRED for filter_ in filters if (metric, filter_) in keys]
    return ranked[0] if ranked else keys[0]


def check_kind(name: str, index: dict) -> None:
    """Raise ValueError, in one sentence, unless a name is a task, or a group, with a value per document.

    Args:
        index: lm-eval's, `TaskManager.task_index`; it has the name.
    """
    leaves = dict(_leaves(name, index))
    entry, parts = index[name], f"name its tasks one by one, {_listed(leaves)} (study key tasks)"
    if entry.kind.name == "TAG":
        raise ValueError(f"task {name!r} is a tag without a score of its own: {parts}")
    if python := [leaf for leaf, cfg in leaves.items() if "class" in cfg]:
        raise ValueError(f"task {python[0]!r} is a program that may score all documents at once: use another task")
    reported = _averaged(entry.cfg, leaves) if entry.kind.name == "GROUP" else list(_reported(entry.cfg))
    if not reported:
        raise ValueError(f"task {name!r} is a group without a score of its own: {parts}")
    key = ",".join(primary(name, reported))
    if lacking := [leaf for leaf, cfg in leaves.items() if key not in _reported(cfg)]:
        raise ValueError(f"task {name!r} is a group averaged by {key}, which {lacking[0]} does not report: {parts}")
    for leaf, cfg in leaves.items():
        if not _reported(cfg)[key]:
            raise ValueError(
                f"task {leaf!r} is scored by {key.partition(',')[0]} over all documents at once, and models are "
                "compared document by document: use another task (study key tasks)"
            )


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")


def _leaves(item: str | dict, index: dict) -> Iterator[tuple[str, dict]]:
    """Names and settings of the tasks that a name, or an entry of a group's list, unfolds to."""
    changes = item if isinstance(item, dict) else {}
    name = changes.get("group") or changes.get("task") or "one without a name" if changes else item
    entry = index.get(name)
    if entry is None and "group" in changes:
        inside = changes["task"]
    elif entry is None or entry.kind.name in ("TASK", "PY_TASK"):
        yield name, (entry.cfg if entry else {}) | changes
        return
    else:
        inside = sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg["task"]
    for child in [inside] if isinstance(inside, str) else inside:
        yield from _leaves(child, index)


def _reported(cfg: dict) -> dict[str, bool]:
    """What a task reports as "metric,filter", and whether each document has a value of its own."""
    default = registry.DEFAULT_METRIC_REGISTRY.get(cfg.get("output_type", "generate_until"), [])
    listed = cfg.get("metric_list") or [{"metric": name} for name in default]
    filters = [filter_["name"] for filter_ in cfg.get("filter_list") or []] or ["none"]
    return {f"{_name(metric)},{name}": _per_document(metric) for name in filters for metric in listed}


def _name(metric: dict) -> str:
    """A metric's name, also where it is a function, which the index gives as path and name."""
    return Path(metric["metric"]).suffix[1:] or metric["metric"]


def _per_document(metric: dict) -> bool:
    name = _name(metric)
    if name in LIKELIHOODS:
        return True
    if "aggregation" in metric:
        return metric["aggregation"] == "mean"
    known = name in registry.metric_agg_registry
    return not known or registry.get_metric_aggregation(name) is metrics.mean  # what lm-eval does not know, it averages


def _averaged(cfg: dict, leaves: dict[str, dict]) -> list[str]:
    """What a group averages, as "metric,filter", of what any of its tasks reports."""
    wanted = cfg.get("aggregate_metric_list") or []
    wanted = [wanted] if isinstance(wanted, dict) else wanted
    reported = list(dict.fromkeys(key for leaf in leaves.values() for key in _reported(leaf)))
    return [key for metric in wanted for key in reported if key.partition(",")[0] == metric["metric"]]
