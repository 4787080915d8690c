"""Intervals, p-values and power of a mean over tasks, documents and training seeds; Holm's correction.

Tasks, and the cells of a grid (block size x data set), are fixed; documents and seeds are samples, crossed with each
other: every model answers the same documents, and a seed moves all documents of its model together. The variance of
the mean over S seeds then has two parts:

    seeds      s^2(seed means) / S                       seed effect and seed x document interaction, S - 1 df
    documents  s^2(document means) / n - interaction     document effect, n - 1 df per task

The second takes off the interaction because the first holds it already. A percentile bootstrap over seeds and
documents covers too much or too little here (docs/log.md): it counts the interaction twice, and takes the spread of
three seeds as known. The mean over its standard error is referred to the mixture of the two parts' t distributions
instead, each weighted with its share of the variance. That was chosen by simulation: with Satterthwaite's degrees of
freedom for the sum three seeds cover 92-95 %, and p-values near 0.006 come up to four times too often; with the
mixture they cover 95-97 %, and small p-values come no more often than they should (see
tests/analysis/test_statistics.py). Two seeds are too few for either: coverage can fall to 92 %. With one seed nothing
is known of seeds, and the interval speaks of documents only.

Several cells share their documents but not their trainings: seed 0 of one cell and seed 0 of another train other
layers on other rows, so each training counts as a draw of its own, and Satterthwaite's rule adds the cells' degrees of
freedom up. That errs on the safe side: such means cover 95-98 %.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr


def averaged_tasks(scores: dict[str, dict]) -> list[str]:
    """The tasks that enter an average: those scored in 0..1 where more is better."""
    return [task for task, score in scores.items() if score["higher_is_better"]]


def average_score(scores: dict[str, dict]) -> float:
    """Mean score over tasks, 0..1."""
    return float(np.mean([scores[task]["value"] for task in averaged_tasks(scores)]))


def recovery(scores: dict[str, dict], original: dict[str, dict]) -> float:
    """Average score over the original's average score (arXiv 2410.09982); 1 is full recovery."""
    _check_solved(original)
    return average_score(scores) / average_score(original)


def _check_solved(original: dict[str, dict]) -> None:
    """Raise ValueError where there is no average score of the original, or where it is 0."""
    documents = [original[task]["documents"] for task in averaged_tasks(original)]
    if not documents:
        raise ValueError("no task enters the average: recovery needs one that is scored in 0..1 where more is better")
    if not any(map(any, documents)):
        raise ValueError("the original model scores 0 on every task: recovery needs tasks that it can solve")


def percentile_interval(draws: np.ndarray, *, level: float = 0.95) -> list[float]:
    """Central interval of a bootstrap distribution."""
    return [float(q) for q in np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])]


def bootstrap_mean(values: np.ndarray, *, draws: int = 2000, seed: int = 0) -> dict:
    """Mean of a sample with its 95 % bootstrap interval."""
    values = np.asarray(values, dtype=float)
    counts = np.random.default_rng(seed).multinomial(len(values), [1 / len(values)] * len(values), size=draws)
    return {
        "mean": float(values.mean()),
        "interval": percentile_interval(counts @ values / len(values)),
        "n": len(values),
    }


def estimate(values: list[np.ndarray], *, null: float = 0.0, level: float = 0.95) -> dict:
    """Mean over tasks of the mean over a task's documents and seeds, with what is known about it.

    Args:
        values: per task (seeds, documents) or (cells, seeds, documents), with the same cells and seeds for every task;
            for a paired comparison, differences.
        null: the value that the p-value tests against.

    Returns:
        {estimate, se, interval, p, detectable, seed_share, df, seeds, documents}: `p` is two-sided; `detectable` is
        the smallest distance from `null` that a test at 1 - level finds with 80 % power; `seed_share` is the seeds'
        share of the variance; `df` is {seeds, documents}. Where no value differs from another there is nothing to
        test with, and p is 1.
    """
    middle = float(np.mean([task.mean() for task in values]))
    cells = [task[None] if task.ndim == 2 else task for task in values]
    by_seed, seed_df = _seed_variance(cells)
    by_document, document_df = _document_variance(cells)
    se, share = float(np.sqrt(by_seed + by_document)), float(by_seed / max(by_seed + by_document, 1e-300))
    mixture = {"share": share, "seed_df": max(seed_df, 1), "document_df": document_df}
    reach = _quantile((1 - level) / 2, **mixture)
    return {
        "estimate": middle,
        "se": se,
        "interval": [middle - reach * se, middle + reach * se],
        "p": float(min(1.0, 2 * _tail(abs(middle - null) / se, **mixture))) if se > 0 else 1.0,
        "detectable": (reach + _quantile(0.2, **mixture)) * se,
        "seed_share": share,
        "df": {"seeds": seed_df, "documents": document_df},
        "seeds": cells[0].shape[1],
        "documents": sum(task.shape[2] for task in cells),
    }


def _seed_variance(values: list[np.ndarray]) -> tuple[float, float]:
    """The mean's variance from seeds, interaction included, and its degrees of freedom; 0 and 0 with one seed."""
    cells, seeds, _ = values[0].shape
    if seeds == 1:
        return 0.0, 0.0
    means = np.mean([task.mean(axis=2) for task in values], axis=0)
    parts = means.var(axis=1, ddof=1) / seeds / cells**2
    return float(parts.sum()), _satterthwaite(parts, np.full(cells, seeds - 1))


def _document_variance(values: list[np.ndarray]) -> tuple[float, float]:
    """The mean's variance from documents, interaction left out, and its degrees of freedom.

    A task of a single document has no spread to measure and counts with none.
    """
    cells, seeds, _ = values[0].shape
    parts, interaction = [], 0.0
    for task in values:
        n, means = task.shape[2], task.mean(axis=(0, 1))
        df = max(n - 1, 1)
        interactions = task - task.mean(axis=1, keepdims=True) - task.mean(axis=2, keepdims=True)
        interactions = interactions + task.mean(axis=(1, 2), keepdims=True)
        interaction += (interactions**2).sum() / (df * max(seeds - 1, 1)) / (seeds * n) / cells**2 / len(values) ** 2
        parts.append(((means - means.mean()) ** 2).sum() / df / n / len(values) ** 2)
    dfs = [max(task.shape[2] - 1, 1) for task in values]
    return max(float(sum(parts) - interaction), 0.0), _satterthwaite(np.array(parts), np.array(dfs))


def _satterthwaite(parts: np.ndarray, dfs: np.ndarray) -> float:
    """Degrees of freedom of a sum of variances that have `dfs` each."""
    squares = (parts**2 / dfs).sum()
    return float(parts.sum() ** 2 / squares) if squares > 0 else float(dfs.sum())


def _tail(t: float, *, share: float, seed_df: float, document_df: float) -> float:
    """P(T > t) in the mixture of the two t distributions."""
    return float(share * stdtr(seed_df, -t) + (1 - share) * stdtr(document_df, -t))


def _quantile(tail: float, **mixture) -> float:
    """The t that a share `tail` of the mixture lies above."""
    return float(brentq(lambda t: _tail(t, **mixture) - tail, 0, 1e4))


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
    _check_solved(original)
    reference = [document_values([original], task) for task in averaged_tasks(original)]
    base = float(np.mean([task.mean() for task in reference]))
    values = [document_values(scores, task, minus=minus) for task in averaged_tasks(original)]
    ratio = float(np.mean([task.mean() for task in values])) / base
    return [ratio + (task - ratio * expected) / base for task, expected in zip(values, reference, strict=True)]


def recovered(scores: dict[str, dict], original: dict[str, dict]) -> dict:
    """{recovery, scores, interval}: one model's recovery with its 95 % interval over documents."""
    spread = estimate(recovery_values([scores], original))["interval"]
    return {"recovery": recovery(scores, original), "scores": scores, "interval": spread}


def document_values(scores: list[dict], task: str, *, minus: list[dict] | None = None) -> np.ndarray:
    """(seeds, documents) scores of one task, or their differences, paired by seed and by document."""
    values = np.array([score[task]["documents"] for score in scores], dtype=float)
    return values if minus is None else values - document_values(minus, task)


def stacked(cells: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Several cells' values, each per task (seeds, documents), as per task (cells, seeds, documents)."""
    return [np.stack(tasks) for tasks in zip(*cells, strict=True)]


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values: below 0.05 at most one family in twenty holds a false one."""
    p, m = np.asarray(p_values, dtype=float), len(p_values)
    order = np.argsort(p)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (m - np.arange(m))), 1)
    return adjusted.tolist()
