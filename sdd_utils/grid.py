"""The grid of a study, block size x data set x arm, with recovery and intervals, from its records."""

import numpy as np

from sdd_utils.arms import ARMS
from sdd_utils.results import average, bootstrap_recovery, interval, of_step, recovery

_LORA = ("rank", "alpha", "targets")
_ARM_ORDER = ("original", "no_ft", *ARMS, "merged")


def grid(records: list[dict]) -> list[dict]:
    """One row per model: {arm, block_size, data_set, seeds, average, recovery, interval, scores}.

    `data_set` is "" where a model was not fine-tuned. Several seeds are averaged per document before the
    bootstrap, so the interval speaks of documents only.
    """
    original = original_scores(records)
    rows = []
    for (arm, block_size, data_set), per_seed in sorted(_scores_by_model(records).items(), key=in_order):
        rows.append({"arm": arm, "block_size": block_size, "data_set": data_set} | _summary(per_seed, original))
    return rows


def _summary(per_seed: list[dict], original: dict[str, dict]) -> dict:
    scores = _mean_over_seeds(per_seed)
    return {
        "seeds": len(per_seed),
        "average": average(scores),
        "recovery": recovery(scores, original),
        "interval": interval(bootstrap_recovery(scores, original)),
        "scores": scores,
    }


def scaling(records: list[dict]) -> list[dict]:
    """Recovery against the number of training rows: the grid's columns and `rows`, a row per fine-tuned model."""
    original = original_scores(records)
    found = []
    for (arm, block_size, data_set, rows), per_seed in sorted(finetuned(records).items()):
        key = {"arm": arm, "block_size": block_size, "data_set": data_set, "rows": rows}
        found.append(key | _summary([metrics["scores"] for metrics in per_seed], original))
    return found


def capacities(records: list[dict]) -> list[dict]:
    """Recovery by LoRA capacity, each on all training rows: the grid's columns, rank, alpha and targets."""
    original, by_capacity = original_scores(records), {}
    for record in of_step(records, "finetuning"):
        by_capacity.setdefault(tuple(record["params"][f"lora_{name}"] for name in _LORA), []).append(record)
    rows = []
    for lora, own in by_capacity.items():
        for key, per_seed in _on_all_rows(_by_model(own)).items():
            line = dict(zip(("arm", "block_size", "data_set", *_LORA), (*key, *lora), strict=True))
            rows.append(line | _summary([metrics["scores"] for metrics in per_seed], original))
    order = ("data_set", "block_size", "rank", "alpha", "targets")
    return sorted(rows, key=lambda row: (*(row[name] for name in order), _ARM_ORDER.index(row["arm"])))


def finetuned(records: list[dict]) -> dict[tuple, list[dict]]:
    """Metrics of the models of the study's own LoRA capacity, a list over seeds, by (arm, block size, data set,
    training rows)."""
    return _by_model([record for record in of_step(records, "finetuning") if not record["params"].get("capacity")])


def _by_model(records: list[dict]) -> dict[tuple, list[dict]]:
    found: dict[tuple, list[dict]] = {}
    for record in records:
        params = record["params"]
        for arm, metrics in record["metrics"]["arms"].items():
            key = (arm, params["block_size"], params["data_set"], metrics["training"]["rows"])
            found.setdefault(key, []).append(metrics)
    return found


def main_comparison(records: list[dict]) -> dict[tuple, list[dict]]:
    """`finetuned` on the largest number of rows only, by (arm, block size, data set)."""
    return _on_all_rows(finetuned(records))


def _on_all_rows(found: dict[tuple, list[dict]]) -> dict[tuple, list[dict]]:
    return {key[:3]: per_seed for key, per_seed in sorted(found.items())}  # the largest number comes last and stays


def in_order(item: tuple) -> tuple:
    """Sorting key of an item ((arm, block size, data set), ...): as tables list the models."""
    (arm, block_size, data_set), _ = item
    return block_size, data_set, _ARM_ORDER.index(arm)


def original_scores(records: list[dict]) -> dict[str, dict]:
    """The unpruned model's scores by task."""
    for record in of_step(records, "pruning"):
        if record["params"]["block_size"] == 0:
            return record["metrics"]["scores"]
    raise FileNotFoundError("the original model has no record: run notebooks/02_pruning.ipynb with block_size = 0")


def _scores_by_model(records: list[dict]) -> dict[tuple, list[dict]]:
    """Scores of every model, a list over seeds, by (arm, block size, data set)."""
    found: dict[tuple, list[dict]] = {}
    for record in of_step(records, "pruning"):
        n = record["params"]["block_size"]
        found[("no_ft" if n else "original", n, "")] = [record["metrics"]["scores"]]
    for key, per_seed in main_comparison(records).items():
        found[key] = [metrics["scores"] for metrics in per_seed]
    for record in of_step(records, "merging"):
        params, middle = record["params"], min(record["metrics"]["points"], key=lambda point: abs(point["t"] - 0.5))
        key = ("merged", params["block_size"], f"{params['data_set']} + {params['other_data_set']}")
        found.setdefault(key, []).append(middle["scores"])
    return found


def _mean_over_seeds(per_seed: list[dict]) -> dict[str, dict]:
    """One score per task from several seeds: values and documents averaged, standard error recomputed."""
    if len(per_seed) == 1:
        return per_seed[0]
    mean = {}
    for task, first in per_seed[0].items():
        documents = np.mean([scores[task]["documents"] for scores in per_seed], axis=0)
        value = float(np.mean([scores[task]["value"] for scores in per_seed]))
        spread = float(np.mean([scores[task]["stderr"] for scores in per_seed]))
        if documents.ndim == 1 and len(documents) > 1:
            spread = float(documents.std(ddof=1) / np.sqrt(len(documents)))
        mean[task] = first | {"value": value, "stderr": spread, "documents": documents.tolist()}
    return mean


def differences(rows: list[dict], original: dict[str, dict]) -> list[dict]:
    """Self-Data FT minus SFT in recovery, per block size and data set, paired by document, with its interval."""
    by_key = {(row["arm"], row["block_size"], row["data_set"]): row for row in rows}
    found = []
    for (arm, block_size, data_set), row in by_key.items():
        other = by_key.get(("sft", block_size, data_set))
        if arm != "self_data_ft" or other is None:
            continue
        draws = bootstrap_recovery(row["scores"], original) - bootstrap_recovery(other["scores"], original)
        found.append(
            {
                "block_size": block_size,
                "data_set": data_set,
                "difference": row["recovery"] - other["recovery"],
                "interval": interval(draws),
            }
        )
    return found


def without_documents(rows: list[dict]) -> list[dict]:
    """The grid without the per-document scores, which the jobs' own records keep."""
    return [
        row | {"scores": {t: {k: v for k, v in s.items() if k != "documents"} for t, s in row["scores"].items()}}
        for row in rows
    ]
