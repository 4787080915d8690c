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

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

ACCURACY, CHOICE, BITS = "accuracy", "choice_probability", "gold_bits_per_byte"  # keys of `base.records.Score`
HAS_CHANCE = (ACCURACY, CHOICE)  # measures of which guessing has a score

_OF_SIZE = ("se", "seed_se", "document_se", "interaction_se", "detectable")  # of `estimate`, in the mean's own unit
CLOZE = "_continuation"  # lm-eval's name for a task whose answers are texts instead of letters (mmlu_continuation)
_FAR = 64  # standard errors: the end of an interval that has none

Parts = tuple[list[np.ndarray], list[np.ndarray]]  # numerators and denominators of a ratio, per task


def averaged_tasks(original: dict[str, dict], *, measure: str = ACCURACY) -> list[str]:
    """The tasks whose mean is the average: those of several documents on which the original stands clear of chance.

    Where there is none, all of them: such an average says nothing, and `left_out` says so.
    """
    scored = _scored(original, measure)
    return [task for task in scored if not _lack(original[task], measure)] or scored


def _scored(original: dict[str, dict], measure: str) -> list[str]:
    """The tasks that have a measure, one form of each: accuracy counts letters, as published; others their cloze."""
    cloze = {task.removesuffix(CLOZE): task for task in original if task.endswith(CLOZE)}
    twice = [letters if measure != ACCURACY else task for letters, task in cloze.items() if letters in original]
    return [task for task, score in original.items() if measure in score and task not in twice]


def left_out(original: dict[str, dict], *, measure: str = ACCURACY) -> dict[str, str]:
    """Why a task is left out of the average, or should be, by task."""
    scored = _scored(original, measure)
    lacks = {task: lack for task in scored if (lack := _lack(original[task], measure))}
    stays = "; it stays, as no other task is better, so the average says nothing" if len(lacks) == len(scored) else ""
    return {task: f"{lack}{stays}" for task, lack in lacks.items()}


def _lack(score: dict, measure: str) -> str:
    """Why a score counts in no average, "" where it does.

    A single document says nothing of others. Where guessing has a score, the original's 95 % interval has to lie above
    it; bits per byte have no such floor.
    """
    if len(score[measure]["documents"]) == 1:
        return "it has a single document, which says nothing of others"
    low = measure in HAS_CHANCE and _lower_end(score[measure]) <= score["chance"]
    return f"the original's {_against_chance(score, measure)}" if low else ""


def _lower_end(measured: dict) -> float:
    return measured["value"] - stdtrit(max(len(measured["documents"]) - 1, 1), 0.975) * measured["stderr"]


def _against_chance(score: dict, measure: str) -> str:
    value, low = score[measure]["value"], _lower_end(score[measure])
    return f"{measure.replace('_', ' ')} of {value:.3f} [{low:.3f}, …] is not clear of chance, {score['chance']:.3f}"


def average_score(scores: dict[str, dict], *, tasks: list[str], measure: str = ACCURACY) -> float:
    """Mean over tasks of one measure."""
    return float(np.mean([scores[task][measure]["value"] for task in tasks]))


def recovery(scores: dict[str, dict], original: dict[str, dict], *, measure: str = ACCURACY) -> float:
    """Average score over the original's average score (arXiv 2410.09982); 1 is full recovery."""
    tasks = averaged_tasks(original, measure=measure)
    _check_solved(original, tasks, measure)
    return average_score(scores, tasks=tasks, measure=measure) / average_score(original, tasks=tasks, measure=measure)


def _check_solved(original: dict[str, dict], tasks: list[str], measure: str) -> None:
    """Raise ValueError where there is no average score of the original, or where it is 0."""
    if not tasks:
        raise ValueError(f"no task has the measure {measure!r}: recovery needs one that is scored in 0..1")
    if not any(any(original[task][measure]["documents"]) for task in tasks):
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
        {estimate, se, seed_se, document_se, interaction_se, interval, p, detectable, seed_share, level, df, cells,
        seeds, documents}: `p` is two-sided; `se` has the two parts seed_se and document_se; interaction_se is the part
        of seed_se that more documents lower as well; `detectable` is the smallest distance from `null` that a test at
        1 - level finds with 80 % power; `seed_share` is the seeds' share of the variance; `df` is {seeds, documents}.
        Where no value differs from another there is nothing to test with, and p is 1.
    """
    middle = float(np.mean([task.mean() for task in values]))
    cells = [task[None] if task.ndim == 2 else task for task in values]
    by_seed, seed_df = _seed_variance(cells)
    interaction = _interaction_variance(cells)
    by_document, document_df = _document_variance(cells, interaction=interaction)
    dfs = {"seed_df": seed_df, "document_df": document_df}
    se, mixture = math.sqrt(by_seed + by_document), _mixture(by_seed, by_document, **dfs)
    reach = _quantile((1 - level) / 2, **mixture)
    return {
        "estimate": middle,
        "se": se,
        "seed_se": math.sqrt(by_seed),
        "document_se": math.sqrt(by_document),
        "interaction_se": math.sqrt(min(interaction, by_seed)),
        "interval": [middle - reach * se, middle + reach * se],
        "p": float(min(1.0, 2 * _tail(abs(middle - null) / se, **mixture))) if se > 0 else 1.0,
        "detectable": detectable_difference(by_seed, by_document, **dfs, level=level),
        "seed_share": mixture["share"],
        "level": level,
        "df": {"seeds": seed_df, "documents": document_df},
        "cells": cells[0].shape[0],
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


def _interaction_variance(values: list[np.ndarray]) -> float:
    """The mean's variance from the interaction of seeds and documents; with one seed documents hold it, and it is 0."""
    cells, seeds, _ = values[0].shape
    variance = 0.0
    for task in values:
        interactions = task - task.mean(axis=1, keepdims=True) - task.mean(axis=2, keepdims=True)
        interactions = interactions + task.mean(axis=(1, 2), keepdims=True)
        df, n = max(task.shape[2] - 1, 1) * max(seeds - 1, 1), task.shape[2]
        variance += (interactions**2).sum() / df / (seeds * n) / cells**2 / len(values) ** 2
    return float(variance)


def _document_variance(values: list[np.ndarray], *, interaction: float) -> tuple[float, float]:
    """The mean's variance from documents, interaction left out, and its degrees of freedom; 0 of a single document."""
    dfs = np.array([max(task.shape[2] - 1, 1) for task in values])
    means = [task.mean(axis=(0, 1)) for task in values]
    squares = np.array([((mean - mean.mean()) ** 2).sum() / len(mean) / len(values) ** 2 for mean in means])
    return max(float((squares / dfs).sum()) - interaction, 0.0), _satterthwaite(squares / dfs, dfs)


def _satterthwaite(parts: np.ndarray, dfs: np.ndarray) -> float:
    """Degrees of freedom of a sum of variances that have `dfs` each."""
    squares = (parts**2 / dfs).sum()
    return float(parts.sum() ** 2 / squares) if squares > 0 else float(dfs.sum())


def _mixture(by_seed: float, by_document: float, *, seed_df: float, document_df: float) -> dict:
    """The mixture of two t distributions that a mean with these two parts of its variance is referred to."""
    share = float(by_seed / max(by_seed + by_document, 1e-300))
    return {"share": share, "seed_df": max(seed_df, 1), "document_df": document_df}


def detectable_difference(
    by_seed: float, by_document: float, *, seed_df: float, document_df: float, level: float = 0.95
) -> float:
    """The smallest difference that a test at 1 - level finds with 80 % power; its variance has these two parts."""
    mixture = _mixture(by_seed, by_document, seed_df=seed_df, document_df=document_df)
    return (_quantile((1 - level) / 2, **mixture) + _quantile(0.2, **mixture)) * math.sqrt(by_seed + by_document)


def _tail(t: float, *, share: float, seed_df: float, document_df: float) -> float:
    """P(T > t) in the mixture of the two t distributions."""
    return float(share * stdtr(seed_df, -t) + (1 - share) * stdtr(document_df, -t))


def _quantile(tail: float, **mixture) -> float:
    """The t that a share `tail` of the mixture lies above."""
    return float(brentq(lambda t: _tail(t, **mixture) - tail, 0, 1e4))


def estimate_ratio(
    numerators: list[np.ndarray], denominators: list[np.ndarray], *, null: float = 0.0, level: float = 0.95
) -> dict:
    """Mean of one sample over the mean of another, paired by document, by Fieller's method (J. R. Stat. Soc. B 1954).

    A ratio r is in the interval if mean(numerators - r * denominators) does not differ from 0, tested as `estimate`
    does with the t quantile at the estimate; so is `null`. Where the denominator is not clear of 0, no ratio, however
    large, can be ruled out: the ends are then `_FAR` standard errors away.

    Args:
        numerators, denominators: see `estimate`; arrays of one task broadcast to each other.

    Returns:
        what `estimate` returns, of the ratio.
    """
    below = float(np.mean([task.mean() for task in denominators]))
    ratio = float(np.mean([task.mean() for task in numerators])) / below

    def without(r: float) -> dict:
        return estimate([top - r * bottom for top, bottom in zip(numerators, denominators, strict=True)], level=level)

    found = without(ratio)
    se, reach = found["se"], found["interval"][1] - found["estimate"]
    spreads = [estimate(values)["se"] for values in (numerators, denominators)]
    ends = _fieller(ratio, below, reach=reach / se, se=se, spreads=spreads) if se > 0 else [ratio, ratio]
    scaled = {name: found[name] / abs(below) for name in _OF_SIZE}
    return found | scaled | {"estimate": ratio, "interval": ends, "p": without(null)["p"]}


def _fieller(ratio: float, below: float, *, reach: float, se: float, spreads: list[float]) -> list[float]:
    """The roots r of (mean of numerators - r * denominators)^2 = reach^2 * its variance, a quadratic in r.

    Args:
        below: the denominators' mean.
        se: standard error of the mean of numerators - ratio * denominators.
        spreads: standard errors of the numerators' and the denominators' means.
    """
    of_top, of_bottom = np.square(spreads)
    share = reach**2 * of_bottom / below**2
    if share >= 1:
        return [ratio - _FAR * se / abs(below), ratio + _FAR * se / abs(below)]
    both = (of_top + ratio**2 * of_bottom - se**2) / (2 * ratio) if ratio else 0.0  # covariance
    slope = both / of_bottom if of_bottom > 0 else 0.0
    width = reach / abs(below) * math.sqrt(max(se**2 - share * (of_top - slope * both), 0.0))
    return [float((ratio - share * slope + side * width) / (1 - share)) for side in (-1, 1)]


def recovery_parts(
    scores: list[dict],
    original: dict[str, dict],
    *,
    minus: list[dict] | None = None,
    tasks: list[str] | None = None,
    measure: str = ACCURACY,
) -> Parts:
    """Recovery, or a difference of two, as numerators and denominators for `estimate_ratio`.

    Args:
        scores: a model's scores by task, one dict per seed.
        minus: the other model's, with the same seeds in the same order: pairs by seed and by document.
        tasks: by default those of the average.

    Returns:
        per task (seeds, documents), and (1, documents) of the original.

    Raises:
        ValueError: the original scores 0 everywhere.
    """
    tasks = averaged_tasks(original, measure=measure) if tasks is None else tasks
    _check_solved(original, tasks, measure)
    tops = [document_values(scores, task, minus=minus, measure=measure) for task in tasks]
    return tops, [document_values([original], task, measure=measure) for task in tasks]


def healed_parts(
    scores: list[dict],
    original: dict[str, dict],
    no_ft: dict[str, dict],
    *,
    minus: list[dict] | None = None,
    tasks: list[str],
) -> Parts:
    """The healed share of bits per byte, or a difference of two, for `estimate_ratio`.

        (No FT - model) / (No FT - original)        0 is the pruned model, 1 the original

    Args:
        scores, minus: see `recovery_parts`.
        no_ft: the pruned model's scores.
    """
    pruned = {task: document_values([no_ft], task, measure=BITS) for task in tasks}
    reference = [no_ft] * len(scores) if minus is None else minus
    tops = [-document_values(scores, task, minus=reference, measure=BITS) for task in tasks]
    return tops, [pruned[task] - document_values([original], task, measure=BITS) for task in tasks]


def shows_loss(losses: list[np.ndarray]) -> bool:
    """Whether pruning's loss, the denominators of `healed_parts`, is clear of 0: else there is nothing to heal."""
    return estimate(losses)["interval"][0] > 0


def recovered(scores: dict[str, dict], original: dict[str, dict], *, measure: str = ACCURACY) -> dict:
    """{recovery, scores, interval}: one model's recovery with its 95 % interval over documents."""
    spread = estimate_ratio(*recovery_parts([scores], original, measure=measure))["interval"]
    return {"recovery": recovery(scores, original, measure=measure), "scores": scores, "interval": spread}


def document_values(
    scores: list[dict], task: str, *, minus: list[dict] | None = None, measure: str = ACCURACY
) -> np.ndarray:
    """(seeds, documents) of one measure of a task, or its differences, paired by seed and by document."""
    values = np.array([score[task][measure]["documents"] for score in scores], dtype=float)
    return values if minus is None else values - document_values(minus, task, measure=measure)


def stacked_parts(cells: list[Parts]) -> Parts:
    """Several cells' numerators and denominators, as those of their mean: per task (cells, seeds, documents)."""
    seeds = cells[0][0][0].shape[0]
    tops, bottoms = zip(*cells, strict=True)
    same = [[np.broadcast_to(task, (seeds, task.shape[1])) for task in cell] for cell in bottoms]
    return stacked([*tops]), stacked(same)


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
