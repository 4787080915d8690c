"""The figures of single jobs, as their notebooks show them, drawn from the records."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from sdd_utils.analysis.answer_shift import cosines_by_arm
from sdd_utils.analysis.model_grid import untuned_scores
from sdd_utils.report import figures, score_figures


def job_figures(named: dict[str, dict]) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every job's figures.

    Args:
        named: a study's records by file name.
    """
    no_ft = untuned_scores(named.values())
    for file, record in named.items():
        name, step = file.removesuffix(".json"), record["step"]
        job = name.removeprefix(f"{step}-")
        if step == "pruning":
            arm = "no_ft" if record["params"]["block_size"] else "original"
            yield f"scores_{job}", score_figures.score_dots({arm: record["metrics"]["scores"]})
        elif step == "distillation":
            yield f"distillation_{job}", distillation_figure(record["metrics"])
        elif step == "finetuning":
            arms = record["metrics"]["arms"]
            scores = {arm: model["scores"] for arm, model in arms.items()}
            yield f"loss_{job}", figures.loss_curves({arm: model["training"]["loss"] for arm, model in arms.items()})
            yield f"scores_{job}", score_figures.score_dots({"no_ft": no_ft[record["params"]["block_size"]], **scores})
        elif step == "merging":
            yield f"slerp_{job}", merging_figure(record)
        elif step == "embedding_similarity":
            greedy, sampled = _cosines(record, "greedy"), _cosines(record, "sampled")
            yield f"embedding_{job}", figures.embedding_histogram(greedy, sampled)


def distillation_figure(metrics: dict) -> Figure:
    """What became of the responses of a set that was distilled; see `records.DistillationMetrics`."""
    return figures.distillation_summary({**metrics["sets"]["distilled"], "nll": metrics["nll"]})


def merging_figure(record: dict) -> Figure:
    """Recovery along the path of a merge, and the angles between its parents."""
    params, metrics = record["params"], record["metrics"]
    return figures.slerp_curve(
        metrics["points"],
        list(metrics["angles"].values()),
        names=(params["data_set"], params["other_data_set"]),
        threshold=metrics["lerp_above"],
        lerp_points=metrics["lerp_points"],
        mixture=metrics["mixture"],
        task_vectors=metrics.get("task_vectors"),
    )


def _cosines(record: dict, how: str) -> dict[str, np.ndarray]:
    return {arm: np.array(cosines["similarities"]) for arm, cosines in cosines_by_arm(record, how).items()}
