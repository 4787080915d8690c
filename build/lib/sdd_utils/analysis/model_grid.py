"""The grid of a study, block size x data set x arm, with recovery and intervals, from its records."""

from collections.abc import Iterable

import numpy as np

from sdd_utils.analysis import published
from sdd_utils.analysis.statistics import (
    ACCURACY,
    CHOICE,
    average_score,
    averaged_tasks,
    estimate_ratio,
    holm,
    recovery,
    recovery_parts,
)
from sdd_utils.base.records import MEASURES, of_step
from sdd_utils.data.arms import ARMS

_LORA = ("rank", "alpha", "targets")
_ARM_ORDER = ("original", "no_ft", *ARMS, "merged")


def model_grid(records: list[dict]) -> list[dict]:
    """One row per model: {arm, block_size, data_set, seeds, average, recovery, interval, choice_recovery, scores,
    by_seed}.

    `data_set` is "" where a model was not fine-tuned; `scores` are means over seeds, `by_seed` has each seed's own.
    `choice_recovery` is {recovery, interval} of the choice probability; None where no task offers choices.
    """
    original = original_scores(records)
    rows = []
    for (arm, block_size, data_set), by_seed in sorted(_scores_by_model(records).items(), key=in_order):
        rows.append({"arm": arm, "block_size": block_size, "data_set": data_set} | _summary(by_seed, original))
    return rows


def _summary(by_seed: dict[int, dict], original: dict[str, dict]) -> dict:
    scores = _mean_over_seeds(list(by_seed.values()))
    summary = {"seeds": len(by_seed), "average": average_score(scores, tasks=averaged_tasks(original))}
    summary |= _recovery(by_seed, scores, original, measure=ACCURACY)
    choice = averaged_tasks(original, measure=CHOICE) and _recovery(by_seed, scores, original, measure=CHOICE)
    return summary | {"choice_recovery": choice or None, "scores": scores, "by_seed": by_seed}


def _recovery(by_seed: dict[int, dict], scores: dict, original: dict[str, dict], *, measure: str) -> dict:
    estimated = estimate_ratio(*recovery_parts(list(by_seed.values()), original, measure=measure))
    return {"recovery": recovery(scores, original, measure=measure), "interval": estimated["interval"]}


def scaling(records: list[dict]) -> list[dict]:
    """Recovery against the number of training rows: the grid's columns and `rows`, a row per fine-tuned model."""
    original, rows = original_scores(records), []
    for key, by_seed in sorted(finetuned_models(records).items(), key=lambda item: item[0]):
        line = dict(zip(("arm", "block_size", "data_set", "rows"), key, strict=True))
        rows.append(line | _summary(scores_of(by_seed), original))
    return rows


def capacities(records: list[dict]) -> list[dict]:
    """Recovery by LoRA capacity, each on all training rows: the grid's columns, rank, alpha and targets."""
    original, rows = original_scores(records), []
    for lora in dict.fromkeys(lora_of(record) for record in of_step(records, "finetuning")):
        for key, by_seed in main_comparison(records, lora=lora).items():
            line = dict(zip(("arm", "block_size", "data_set", *_LORA), (*key, *lora), strict=True))
            rows.append(line | _summary(scores_of(by_seed), original))
    order = ("data_set", "block_size", "rank", "alpha", "targets")
    return sorted(rows, key=lambda row: (*(row[name] for name in order), _ARM_ORDER.index(row["arm"])))


def lora_of(record: dict) -> tuple:
    """(rank, alpha, targets) of a fine-tuning's LoRA update."""
    return tuple(record["params"][f"lora_{name}"] for name in _LORA)


def finetuned_models(records: list[dict], *, lora: tuple | None = None) -> dict[tuple, dict[int, dict]]:
    """Metrics of the fine-tuned models by seed, by (arm, block size, data set, training rows), at one LoRA capacity.

    An arm that leaves rows out counts with the rows of the others.

    Args:
        lora: the capacity, see `lora_of`; the study's own where it is left out.
    """
    models: dict[tuple, dict] = {}
    for record in of_step(records, "finetuning"):
        params = record["params"]
        for arm, metrics in record["metrics"]["arms"].items() if _at_capacity(record, lora) else ():
            key = (arm, params["block_size"], params["data_set"], _training_rows(record))
            models.setdefault(key, {})[params["seed"]] = metrics
    return models


def _at_capacity(record: dict, lora: tuple | None) -> bool:
    return lora_of(record) == lora if lora else not record["params"]["capacity"]


def main_finetunings(records: list[dict], *, lora: tuple | None = None) -> list[dict]:
    """The records of the main comparison: one LoRA capacity, and per block size and data set the most rows."""
    tuned = [record for record in of_step(records, "finetuning") if _at_capacity(record, lora)]
    most: dict[tuple, int] = {}
    for record in tuned:
        most[_cell(record)] = max(most.get(_cell(record), 0), _training_rows(record))
    return [record for record in tuned if _training_rows(record) == most[_cell(record)]]


def _cell(record: dict) -> tuple[int, str]:
    return record["params"]["block_size"], record["params"]["data_set"]


def _training_rows(record: dict) -> int:
    """The rows of a fine-tuning, which all arms have but those that leave some out."""
    return max(model["training"]["rows"] for model in record["metrics"]["arms"].values())


def main_comparison(records: list[dict], *, lora: tuple | None = None) -> dict[tuple, dict[int, dict]]:
    """Metrics by seed, by (arm, block size, data set), of `main_finetunings`."""
    models = finetuned_models(main_finetunings(records, lora=lora), lora=lora)
    return {key[:3]: by_seed for key, by_seed in sorted(models.items(), key=lambda item: item[0])}


def nearest_cut(records: list[dict]) -> int:
    """The block size whose share of parameters is nearest to the paper's at n = 6, of those that are fine-tuned."""
    tuned = {key[1] for key in main_comparison(records)}
    pruned = of_step(records, "pruning")
    cuts = {r["params"]["block_size"]: r["metrics"]["accounting"]["cut_parameters"] for r in pruned}
    wanted = published.published_number("cut_n6").value / 100
    return min(tuned & set(cuts), key=lambda n: abs(cuts[n] - wanted))


def scores_of(by_seed: dict[int, dict]) -> dict[int, dict]:
    """The scores among a model's metrics, by seed."""
    return {seed: metrics["scores"] for seed, metrics in by_seed.items()}


def in_order(item: tuple) -> tuple:
    """Sorting key of an item ((arm, block size, data set), ...): as tables list the models."""
    (arm, block_size, data_set), _ = item
    return block_size, data_set, _ARM_ORDER.index(arm)


def original_scores(records: list[dict]) -> dict[str, dict]:
    """The unpruned model's scores by task."""
    scores = untuned_scores(records)
    if 0 not in scores:
        raise FileNotFoundError("the original model has no record: run notebooks/02_pruning.ipynb with block_size = 0")
    return scores[0]


def untuned_scores(records: Iterable[dict]) -> dict[int, dict[str, dict]]:
    """Scores by task of the models that were not fine-tuned, by block size; 0 is the original."""
    return {r["params"]["block_size"]: r["metrics"]["scores"] for r in of_step(records, "pruning")}


def middle_point(points: list[dict]) -> dict:
    """The point of a merge's path that is nearest to t = 0.5."""
    return min(points, key=lambda point: abs(point["t"] - 0.5))


def rows_by_model(rows: list[dict]) -> dict[tuple, dict]:
    """The rows of `model_grid` by (arm, block size, data set)."""
    return {(row["arm"], row["block_size"], row["data_set"]): row for row in rows}


def _scores_by_model(records: list[dict]) -> dict[tuple, dict[int, dict]]:
    """Scores of every model by seed, by (arm, block size, data set); an untrained model has the one seed 0."""
    models = {("no_ft" if n else "original", n, ""): {0: scores} for n, scores in untuned_scores(records).items()}
    models |= {key: scores_of(by_seed) for key, by_seed in main_comparison(records).items()}
    for record in of_step(records, "merging"):
        params, middle = record["params"], middle_point(record["metrics"]["points"])
        key = ("merged", params["block_size"], f"{params['data_set']} + {params['other_data_set']}")
        models.setdefault(key, {})[params["seed"]] = middle["scores"]
    return models


def _mean_over_seeds(per_seed: list[dict]) -> dict[str, dict]:
    """One score per task from several seeds: each measure's documents averaged, its standard error recomputed."""
    if len(per_seed) == 1:
        return per_seed[0]
    return {task: score | _mean_measures([scores[task] for scores in per_seed]) for task, score in per_seed[0].items()}


def _mean_measures(scores: list[dict]) -> dict[str, dict]:
    means = {}
    for measure in MEASURES & scores[0].keys():
        documents = np.mean([score[measure]["documents"] for score in scores], axis=0)
        spread = float(documents.std(ddof=1) / np.sqrt(len(documents))) if len(documents) > 1 else 0.0
        means[measure] = {"value": float(documents.mean()), "stderr": spread, "documents": documents.tolist()}
    return means


def paired(row: dict, other: dict) -> tuple[list[dict], list[dict]]:
    """Two rows' scores of the seeds that both have, in the same order."""
    seeds = sorted(set(row["by_seed"]) & set(other["by_seed"]))
    return [row["by_seed"][seed] for seed in seeds], [other["by_seed"][seed] for seed in seeds]


def differences(rows: list[dict], original: dict[str, dict], *, measure: str = ACCURACY) -> list[dict]:
    """Self-Data FT minus SFT in recovery, per block size and data set, paired by document and by seed.

    Each is {block_size, data_set, difference, interval, p, p_holm, df, seed_share, detectable, seeds, documents}, see
    `statistics.estimate_ratio`; `p_holm` is corrected over all of them.
    """
    by_model, entries = rows_by_model(rows), []
    for (arm, block_size, data_set), row in by_model.items():
        other = by_model.get(("sft", block_size, data_set))
        if arm != "self_data_ft" or other is None:
            continue
        self_data_ft, sft = paired(row, other)
        measured = estimate_ratio(*recovery_parts(self_data_ft, original, minus=sft, measure=measure))
        difference = measured.pop("estimate")
        entries.append({"block_size": block_size, "data_set": data_set, "difference": difference} | measured)
    corrected = holm([entry["p"] for entry in entries])
    return [entry | {"p_holm": p} for entry, p in zip(entries, corrected, strict=True)]


def without_documents(rows: list[dict]) -> list[dict]:
    """The grid without what there is one of per document, which the jobs' own records keep."""
    return [
        _without(row, "by_seed") | {"scores": {task: _summarised(score) for task, score in row["scores"].items()}}
        for row in rows
    ]


def _summarised(score: dict) -> dict:
    measures = {name: _without(score[name], "documents") for name in MEASURES & score.keys()}
    return _without(score, "choices") | measures


def _without(mapping: dict, key: str) -> dict:
    return {name: value for name, value in mapping.items() if name != key}
