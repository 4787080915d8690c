"""Figures beside the headline, in the style of `plots`: merges, and how far the answers moved."""

from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from sdd_utils.plots import COLOURS, MARKERS, NAMES, figure


def slerp_curve(
    points: list[dict],
    angles: list[float],
    *,
    names: tuple[str, str],
    threshold: float,
    lerp_points: list[dict],
    mixture: dict | None,
) -> Figure:
    """Recovery along t with 95 % intervals, and the angles between the parents' tensors.

    Args:
        points, lerp_points: {t, recovery, interval} of SLERP, parents included, and of LERP between them.
        angles: radians.
        mixture: {recovery, interval} of the model trained on both sets, a horizontal line; None where there is none.
    """
    drawn, (scores, histogram) = figure(2, width=9)
    ends = [point for point in points if point["t"] in (0, 1)]
    chord = sorted([*ends, *lerp_points], key=lambda point: point["t"])
    _path(scores, points, label="SLERP", color=COLOURS["merged"], marker="o", ls="-", zorder=2)
    _path(scores, chord, label="LERP", color="black", marker="s", mfc="none", ms=8, ls="--", lw=1, zorder=3)
    if mixture:
        scores.axhline(mixture["recovery"], color=COLOURS["self_data_ft"], ls=":", lw=2, label="trained on both sets")
        scores.axhspan(*mixture["interval"], color=COLOURS["self_data_ft"], alpha=0.12, lw=0)
    scores.set(xlabel=f"t (0: {names[0]}, 1: {names[1]})", ylabel="recovery (95 % interval)", title="Along the path")
    scores.legend()
    histogram.hist(np.degrees(angles), 30, color=COLOURS["merged"])
    histogram.axvline(np.degrees(np.arccos(threshold)), color="black", ls="--", label="below: LERP")
    histogram.set(xlabel="angle between the parents (degrees)", ylabel="tensors", title="Angle per tensor")
    histogram.legend()
    return drawn


def _path(axis, points: list[dict], **look) -> None:
    low, high = np.array([point["interval"] for point in points]).T
    middle = np.array([point["recovery"] for point in points])
    axis.errorbar([point["t"] for point in points], middle, [middle - low, high - middle], capsize=3, **look)


def embedding_histogram(greedy: dict[str, np.ndarray], sampled: dict[str, np.ndarray]) -> Figure:
    """Distribution of the cosine to the original's greedy answer, per arm, with its mean.

    Greedy answers left, sampled ones right, where there are any.
    """
    panels = {"greedy": greedy} | ({"sampled": sampled} if sampled else {})
    drawn, axes = figure(len(panels), width=6.4 if len(panels) == 1 else 10.5, sharey=True)
    lowest = min(np.min(values) for own in panels.values() for values in own.values())
    bins = np.linspace(min(0.0, lowest), 1, 26)
    lines = dict(zip(dict.fromkeys([*greedy, *sampled]), cycle(["-", "--", ":", "-."]), strict=False))
    for axis, (how, own) in zip(axes, panels.items(), strict=True):
        for arm in own:
            look = {"histtype": "stepfilled", "alpha": 0.5, "hatch": "//"} if arm == "sft" else {"histtype": "step"}
            name = f"{NAMES[arm]}, mean {np.mean(own[arm]):.2f}"
            axis.hist(own[arm], bins, label=name, color=COLOURS[arm], lw=2, ls=lines[arm], **look)
            axis.axvline(np.mean(own[arm]), color=COLOURS[arm], ls=lines[arm])
        axis.set(xlabel="cosine to the original's greedy answer", title=f"Embedding similarity, {how} answers")
        axis.legend(loc="upper left")
    axes[0].set_ylabel("prompts")
    return drawn


def shift_scatter(points: list[dict]) -> Figure:
    """Accuracy lost against embedding similarity, a mark per fine-tuned model (see `shift.models`)."""
    drawn, (axis,) = figure(1, width=6.4)
    for arm in dict.fromkeys(point["arm"] for point in points):
        own = [(point["similarity"], 100 * point["lost"]) for point in points if point["arm"] == arm]
        face = "none" if arm == "sft" else COLOURS[arm]
        look = {"marker": MARKERS[arm], "ls": "", "ms": 7, "color": COLOURS[arm], "mfc": face, "label": NAMES[arm]}
        axis.plot(*zip(*own, strict=True), **look)
    axis.axhline(0, color="black", lw=0.8, ls=":")
    axis.set(xlabel="mean cosine to the original's greedy answers", ylabel="average score lost (points)")
    axis.set_title("Moved answers against lost accuracy, a mark per model")
    axis.legend()
    return drawn
