"""What it costs to remove layers, by how they were chosen, without fine-tuning and after it.

Two measures, both 0 for the original: the bits per byte that the right answers have more than under the original, as a
mean over tasks, and the Kullback-Leibler divergence per token on the original's own answers, in nats.
"""

import numpy as np

from sdd_utils.analysis import model_grid
from sdd_utils.analysis.comparisons import Missing
from sdd_utils.analysis.statistics import BITS, averaged_tasks, document_values, estimate, stacked
from sdd_utils.base.records import of_step
from sdd_utils.base.strategies import PAPERS, STRATEGIES

LOST_BITS, KL = "lost_bits_per_byte", "kl"
Values = list[np.ndarray]  # what `statistics.estimate` takes


def models_by_strategy(records: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Models that were not fine-tuned, {scores, fidelity, ...} each, by (strategy, block size), a model per draw.

    Of studies with one strategy, the paper's, there are none.
    """
    selected = of_step(records, "selection")
    sizes = {record["params"]["block_size"] for record in selected}
    papers = {record["params"]["block_size"]: record["metrics"] for record in of_step(records, "pruning")}
    models = {(PAPERS, n): [metrics] for n, metrics in papers.items() if n in sizes}
    for record in selected:
        for model in record["metrics"]["models"]:
            models.setdefault((model["strategy"], record["params"]["block_size"]), []).append(model)
    order = list(STRATEGIES)
    return dict(sorted(models.items(), key=lambda item: (item[0][1], order.index(item[0][0]))))


def damage(records: list[dict], domains: dict[str, list]) -> list[dict]:
    """Damage by strategy, block size and measure, before fine-tuning and after it where a block was fine-tuned.

    Bits per byte are those of tasks out of the domain of all that is fine-tuned on, so that no arm is favoured there.

    Args:
        domains: the tasks of each data set's own domain, by data set.

    Returns:
        {strategy, arm, block_size, measure, tasks, value, interval, draws}: `arm` is "no_ft" or that of a fine-tuning;
        `interval` is over documents, and over draws or seeds where there are several; `draws` has each draw's own
        value. A measure that nothing has is left out.
    """
    models = models_by_strategy(records)
    sizes = {n for _, n in models}
    tuned = {key: by_seed for key, by_seed in model_grid.main_comparison(records).items() if key[1] in sizes}
    original = model_grid.original_scores(records)
    tasks = _neutral_tasks(original, {data_set for _, _, data_set in tuned}, domains)
    measures = {LOST_BITS: lambda group: lost_bits(group, original, tasks)} if tasks else {}
    measures |= {KL: divergence}
    points = []
    for name, values_of in measures.items():
        about = {"measure": name, "tasks": tasks if name == LOST_BITS else []}
        for (strategy, n), group in models.items():
            points.append(_point(values_of(group), strategy=strategy, arm="no_ft", block_size=n) | about)
        for (arm, n), groups in _by_arm(tuned).items():
            values = stacked([values_of(group) for group in groups])
            points.append(_point(values, strategy=PAPERS, arm=arm, block_size=n) | about)
    return points


def _neutral_tasks(original: dict, data_sets: set[str], domains: dict[str, list]) -> list[str]:
    own = {task for name in data_sets for task in domains.get(name, [])}
    return [task for task in averaged_tasks(original, measure=BITS) if task not in own]


def _by_arm(tuned: dict[tuple, dict[int, dict]]) -> dict[tuple[str, int], list[list[dict]]]:
    """Models by (arm, block size): of each data set, those of the seeds that all data sets have."""
    grouped: dict[tuple, list[dict]] = {}
    for (arm, n, _), by_seed in tuned.items():
        grouped.setdefault((arm, n), []).append(by_seed)
    return {
        key: [[by_seed[seed] for seed in sorted(set.intersection(*map(set, cells)))] for by_seed in cells]
        for key, cells in grouped.items()
    }


def _point(values: Values, **about) -> dict:
    found = estimate(values)
    draws = np.mean([task.mean(axis=-1) for task in values], axis=0)  # (cells,) draws
    return about | {"value": found["estimate"], "interval": found["interval"], "draws": draws.ravel().tolist()}


def lost_bits(models: list[dict], original: dict[str, dict], tasks: list[str]) -> Values:
    """Per task (models, documents) bits per byte above the original's."""
    scores = [model["scores"] for model in models]
    return [document_values(scores, task, minus=[original] * len(models), measure=BITS) for task in tasks]


def divergence(models: list[dict]) -> Values:
    """Per data set (models, answers) values whose mean is the KL per token, a ratio of sums linearised."""
    values = []
    for name in models[0]["fidelity"]:
        documents = np.array([model["fidelity"][name]["documents"] for model in models], dtype=float)
        kl, tokens = documents[..., 1], documents[..., 2]
        ratio = kl.sum(axis=1, keepdims=True) / tokens.sum(axis=1, keepdims=True)
        values.append(ratio + (kl - ratio * tokens) / tokens.mean(axis=1, keepdims=True))
    return values


def strategy_difference(records: list[dict], *, strategy: str, minus: str = PAPERS, null: float = 0.0) -> dict:
    """Bits per byte lost with one strategy's layers minus with another's, over block sizes and tasks.

    Draws are a sample, as seeds are elsewhere. Where neither strategy draws, `fixed` says that nothing but documents is
    sampled.
    """
    models = models_by_strategy(records)
    sizes = [n for name, n in models if name == strategy and (minus, n) in models]
    if not sizes:
        raise Missing(f"the study does not compare {strategy} with {minus} (study key 'selection')")
    original = model_grid.original_scores(records)
    tasks = averaged_tasks(original, measure=BITS)
    if not tasks:
        raise Missing("no task has bits per byte")
    cells = [_paired(models[strategy, n], models[minus, n], tasks) for n in sizes]
    fixed = all(len(models[name, n]) == 1 for name in (strategy, minus) for n in sizes)
    where = f"n = {', '.join(map(str, sizes))}, tasks {', '.join(tasks)}"
    return estimate(stacked(cells), null=null) | {"where": where, "fixed": fixed}


def _paired(first: list[dict], second: list[dict], tasks: list[str]) -> Values:
    """Per task (draws, documents) differences; a strategy without draws is the same in each."""
    draws = max(len(first), len(second))
    first, second = ([model["scores"] for model in models * (draws // len(models))] for models in (first, second))
    return [document_values(first, task, minus=second, measure=BITS) for task in tasks]
