"""Does a model whose answers moved further also score worse, and does foreign text move it further?

arXiv 2410.09982 reports a mean embedding similarity per arm and reads it as distribution shift; how it relates to the
scores of the same models, model by model, is this project's own question. So is how foreign the text was that a model
learnt: the paper's explanation of what its method does is that text of the model's own moves it less.
"""

import numpy as np
from scipy.stats import spearmanr

from sdd_utils.analysis import model_grid
from sdd_utils.analysis.statistics import average_score, averaged_tasks
from sdd_utils.base.records import of_step


def cosines_by_arm(record: dict, how: str) -> dict[str, dict]:
    """{mean, interval, n, similarities} of the answers that a record of 06 compares, by arm.

    Args:
        how: "greedy", or "sampled", where the original is also an arm: its sampled answers beside its greedy ones.
    """
    metrics = record["metrics"]
    original = {"original": metrics["original_sampled"]} if how == "sampled" else {}
    return original | {arm: moved[how] for arm, moved in metrics["arms"].items()}


def shift_points(records: list[dict]) -> list[dict]:
    """A point per fine-tuned model of the main comparison that has answered.

    Each is {arm, block_size, data_set, seed, similarity, lost}: `similarity` the mean cosine of its greedy answers to
    the original's, in -1..1, `lost` the original's average score minus its own, in 0..1.
    """
    original, tuned, points = model_grid.original_scores(records), model_grid.main_comparison(records), []
    tasks = averaged_tasks(original)
    base = average_score(original, tasks=tasks)
    for record in of_step(records, "embedding_similarity"):
        where = {name: record["params"][name] for name in ("block_size", "data_set", "seed")}
        for arm, cosines in cosines_by_arm(record, "greedy").items():
            scores = tuned[(arm, where["block_size"], where["data_set"])][where["seed"]]["scores"]
            points.append(
                {"arm": arm, **where, "similarity": cosines["mean"], "lost": base - average_score(scores, tasks=tasks)}
            )
    return points


def shift_correlation(points: list[dict], *, samples: int = 4000, seed: int = 0) -> dict:
    """Spearman's rank correlation of similarity and accuracy lost, with a 95 % percentile bootstrap interval.

    A training is drawn with all its arms, as these share rows, order and seed. Trainings that share a data set are
    drawn apart, though they are alike, so the interval is rather too narrow.

    Returns:
        {rho, interval, models, trainings}; `rho` and `interval` are None where one of the two never varies, or fewer
        than three trainings stand behind it. Draws in which one does not vary say nothing and are left out.
    """
    values = np.array([[point["similarity"], point["lost"]] for point in points])
    training = [(point["block_size"], point["data_set"], point["seed"]) for point in points]
    members = [np.flatnonzero([other == key for other in training]) for key in dict.fromkeys(training)]
    correlation = {"rho": None, "interval": None, "models": len(points), "trainings": len(members)}
    if len(members) < 3 or np.any(np.ptp(values, axis=0) == 0):
        return correlation
    random, count = np.random.default_rng(seed), len(members)
    resamples = (
        values[np.concatenate([members[i] for i in random.integers(count, size=count)])] for _ in range(samples)
    )
    draws = [_spearman(sample) for sample in resamples if np.all(np.ptp(sample, axis=0) > 0)]
    return correlation | {"rho": _spearman(values), "interval": np.quantile(draws, [0.025, 0.975]).tolist()}


_LEARNT = {"sft": "original", "self_data_ft": "distilled", "self_generated_ft": "self_generated"}  # text, by arm


def foreignness_points(records: list[dict]) -> list[dict]:
    """A point per block size, data set and arm that learns one row set alone, means over seeds; without fidelity none.

    Each is {arm, block_size, data_set, nll, kl}: `nll` the negative log-likelihood of the learnt responses under the
    original, in nats per token of a response, `kl` KL(original || model) in nats per token of the original's answers.
    """
    written = {record["params"]["data_set"]: record["metrics"]["nll"] for record in of_step(records, "distillation")}
    points = []
    for (arm, n, data_set), by_seed in model_grid.main_comparison(records).items():
        faithful = [model["fidelity"] for model in by_seed.values()]
        if arm in _LEARNT and all(faithful):
            kl = float(np.mean([np.mean([own["kl"] for own in by_set.values()]) for by_set in faithful]))
            nll = float(np.mean(written[data_set][_LEARNT[arm]]))
            points.append({"arm": arm, "block_size": n, "data_set": data_set, "nll": nll, "kl": kl})
    return points


def _spearman(values: np.ndarray) -> float:
    return float(spearmanr(values).statistic)


def shift_sentence(correlation: dict) -> str:
    """What the correlation says, in words."""
    behind = f"{correlation['models']} models of {correlation['trainings']} trainings"
    if correlation["rho"] is None:
        return f"With {behind} the correlation is inconclusive: three trainings whose numbers differ are the least."
    low, high = correlation["interval"]
    sentence = f"Spearman's correlation over {behind}: {correlation['rho']:+z.2f} [{low:+z.2f}, {high:+z.2f}]. "
    if low <= 0 <= high:
        return sentence + "The interval holds 0, so these models do not show whether the two go together."
    return sentence + ("Models that moved further lost more." if high < 0 else "Models that moved further lost less.")
