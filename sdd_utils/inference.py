"""Intervals, p-values and power of a mean over tasks, documents and training seeds; Holm's correction.

Tasks are fixed; documents and seeds are samples, crossed with each other: every model answers the same documents, and
a seed moves all documents of its model together. The variance of the mean over S seeds then has two parts:

    seeds      s^2(seed means) / S                       seed effect and seed x document interaction, S - 1 df
    documents  s^2(document means) / n - interaction     document effect, n - 1 df per task

The second takes off the interaction because the first holds it already. A percentile bootstrap over seeds and
documents does not cover here: it resamples three seeds as if their spread were known. The mean over its standard
error is referred to the mixture of the two t distributions instead, each weighted with its share of the variance.
That was chosen by simulation: with Satterthwaite's degrees of freedom three seeds cover 92-95 % and their small
p-values are up to four times too frequent; with the mixture they cover 95-97 % and small p-values are never too
frequent (tests/test_inference.py). Two seeds are too few for either: then coverage can fall to 92 %.
With one seed nothing is known of seeds, and the interval speaks of documents only.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr

from sdd_utils.results import averaged_tasks


def estimate(values: list[np.ndarray], *, null: float = 0.0, level: float = 0.95) -> dict:
    """Mean over tasks of the mean over a task's documents and seeds, with what is known about it.

    Args:
        values: per task (seeds, documents), the same seeds for every task; for a paired comparison, differences.
        null: the value that the p-value tests against.

    Returns:
        {estimate, se, interval, p, detectable, seed_share, df, seeds, documents}: `p` is two-sided; `detectable` is
        the smallest distance from `null` that a test at 1 - level finds with 80 % power; `seed_share` is the seeds'
        share of the variance; `df` is {seeds, documents}. Where no value differs from another there is nothing to
        test with, and p is 1.
    """
    middle = float(np.mean([task.mean() for task in values]))
    by_seed, by_document, document_df = _variances(values)
    se, share = float(np.sqrt(by_seed + by_document)), float(by_seed / max(by_seed + by_document, 1e-300))
    seeds = len(values[0])
    known = {"share": share, "seed_df": max(seeds - 1, 1), "document_df": document_df}
    reach = _quantile((1 - level) / 2, **known)
    return {
        "estimate": middle,
        "se": se,
        "interval": [middle - reach * se, middle + reach * se],
        "p": float(min(1.0, 2 * _tail(abs(middle - null) / se, **known))) if se > 0 else 1.0,
        "detectable": (reach + _quantile(0.2, **known)) * se,
        "seed_share": share,
        "df": {"seeds": seeds - 1, "documents": document_df},
        "seeds": seeds,
        "documents": sum(task.shape[1] for task in values),
    }


def _variances(values: list[np.ndarray]) -> tuple[float, float, float]:
    """The mean's variance from seeds and from documents, and the degrees of freedom of the latter."""
    seeds, tasks = len(values[0]), len(values)
    parts, interactions, dfs = [], [], []
    for task in values:
        n, means = task.shape[1], task.mean(axis=0)
        df = max(n - 1, 1)
        rest = task - means - task.mean(axis=1, keepdims=True) + task.mean()
        parts.append(((means - means.mean()) ** 2).sum() / df / n / tasks**2)
        interactions.append((rest**2).sum() / (df * max(seeds - 1, 1)) / (seeds * n) / tasks**2)
        dfs.append(df)
    seed_means = np.mean([task.mean(axis=1) for task in values], axis=0)
    by_seed = float(seed_means.var(ddof=1)) / seeds if seeds > 1 else 0.0
    squares = sum(part**2 / df for part, df in zip(parts, dfs, strict=True))
    document_df = sum(parts) ** 2 / squares if squares > 0 else float(sum(dfs))
    return by_seed, max(float(sum(parts) - sum(interactions)), 0.0), float(document_df)


def _tail(t: float, *, share: float, seed_df: float, document_df: float) -> float:
    """P(T > t) in the mixture of the two t distributions."""
    return float(share * stdtr(seed_df, -t) + (1 - share) * stdtr(document_df, -t))


def _quantile(tail: float, **known) -> float:
    """The t that a share `tail` of the mixture lies above."""
    return float(brentq(lambda t: _tail(t, **known) - tail, 0, 1e4))


def recovery_values(scores: list[dict], original: dict[str, dict], *, minus: list[dict] | None = None) -> list:
    """Recovery, or a difference of two, as values whose mean it is, for `estimate`.

    The original's average is itself a mean over documents; the ratio is linearised (delta method), so a document
    counts with numerator and denominator together.

    Args:
        scores: a model's scores by task, one dict per seed.
        minus: the other model's, with the same seeds in the same order: pairs by seed and by document.

    Returns:
        per averaged task (seeds, documents).

    Raises:
        ValueError: the original scores 0 everywhere.
    """
    reference = [document_values([original], task) for task in averaged_tasks(original)]
    base = float(np.mean([task.mean() for task in reference]))
    if base == 0:
        raise ValueError("the original model scores 0 on every task: recovery needs tasks that it can solve")
    ours = [document_values(scores, task, minus=minus) for task in averaged_tasks(original)]
    ratio = float(np.mean([task.mean() for task in ours])) / base
    return [ratio + (own - ratio * theirs) / base for own, theirs in zip(ours, reference, strict=True)]


def document_values(scores: list[dict], task: str, *, minus: list[dict] | None = None) -> np.ndarray:
    """(seeds, documents) scores of one task, or their differences, paired by seed and by document."""
    values = np.array([score[task]["documents"] for score in scores], dtype=float)
    return values if minus is None else values - document_values(minus, task)


def mean_of(cells: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Cells of a grid averaged value by value, for `estimate`: the documents, and the seeds, are those of all cells."""
    return [np.mean(tasks, axis=0) for tasks in zip(*cells, strict=True)]


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values: below 0.05 at most one family in twenty holds a false one."""
    p, m = np.asarray(p_values, dtype=float), len(p_values)
    order = np.argsort(p)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (m - np.arange(m))), 1)
    return adjusted.tolist()
