"""Every figure of the project, in one style that colour-blind readers and grey printers can read.

Each function takes plain data, draws one figure and returns it; `save` writes it as PNG. Intervals are always the
caller's own: seaborn would compute others, so `with_intervals` draws them.
"""

from itertools import cycle
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdd_utils.data.arms import arms_in

# Name, colour, marker, hatch, line style: nothing is told by colour alone. Colours are Okabe and Ito's, and of Tol's
# muted scheme (Paul Tol, SRON/EPS/TN/09-002) where these are used up.
_LOOKS = {
    "original": ("Original", "#000000", "D", "", ":"),
    "no_ft": ("No FT", "#999999", "s", "..", (0, (1, 1))),
    "sft": ("SFT", "#E69F00", "^", "//", "--"),
    "self_data_ft": ("Self-Data FT", "#0072B2", "o", "\\\\", "-"),
    "first_attempt_ft": ("First-attempt FT", "#88CCEE", "d", "..\\\\", (0, (1, 2))),
    "kept_rows_ft": ("Kept-rows FT", "#117733", "*", "//..", (0, (7, 1, 1, 1))),
    "self_generated_ft": ("Self-generated FT", "#CC79A7", "v", "++", "-."),
    "mixed_ft": ("Mixed FT", "#56B4E9", "X", "--", (0, (5, 1, 1, 1, 1, 1))),
    "logit_kd": ("Logit KD", "#D55E00", "<", "\\\\//", (0, (6, 1, 2, 1))),
    "self_data_kd": ("Self-data KD", "#332288", ">", "oo", (0, (3, 2))),
    "text_kd": ("Text KD", "#999933", "h", "**", (0, (2, 2, 6, 2))),
    "on_policy": ("On-policy KD", "#882255", "p", "OO", (0, (4, 1, 4, 1, 1, 1))),
    "merged": ("Self-Data FT, SLERP", "#009E73", "P", "xx", (0, (8, 2))),
}
NAMES, COLOURS, MARKERS, HATCHES, LINES = ({arm: look[i] for arm, look in _LOOKS.items()} for i in range(5))
CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
_STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along: another font would change the bytes between machines
    "savefig.dpi": 150,
    "axes.titlesize": 10.5,
    "axes.titlepad": 8,
    "figure.titlesize": 12,
    "axes.grid": True,
    "legend.frameon": False,
    "grid.alpha": 0.4,
    "axes.prop_cycle": plt.cycler(color=CYCLE, marker=["o", "^", "s", "D", "P", "X"]),
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
}
WIDEST = 9.0  # inches: shown 900 pixels wide, as a README is, text of 9 points is still 12 pixels high
_NORMAL_95 = np.array([-1.96, 1.96])  # standard errors from the mean
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 4}  # a legend under the axis label


def figure(
    columns: int = 1, *, rows: int = 1, width: float = 6.4, height: float = 3.8, **subplots
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches in the project's style, and its axes row by row as a flat array."""
    sns.set_theme(context="paper", style="ticks", rc=_STYLE)
    drawn, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **subplots)
    sns.despine(drawn)
    return drawn, axes.ravel()


def columns_of(count: int, *, width: float = 6.4) -> int:
    """Columns of a legend of so many names under a figure of a width: one line if there is room, else several alike."""
    most = 6 if width == WIDEST else 4
    return ceil(count / ceil(count / most))


def save(drawn: Figure, folder: Path, name: str, *, suffix: str = "png") -> Path:
    """Write a figure as "png" or "pdf", without timestamp or version, so that the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{suffix}"
    drawn.savefig(path, metadata={"Software": None} if suffix == "png" else {"CreationDate": None})
    return path


def similarity_heatmap(angular_map: np.ndarray, blocks: list[dict]) -> Figure:
    """The upper triangle of the angular map; each chosen block is a marked cell, named in the legend.

    Args:
        angular_map: (L + 1, L + 1) for L layers, distances of 0..1; row l, column l + n.
        blocks: {block_size, start} of each chosen block.
    """
    drawn, (axis,) = figure(width=6, height=4.8)
    sns.heatmap(angular_map, mask=np.tril(np.ones_like(angular_map)), cmap="cividis", square=True, ax=axis,
                xticklabels=5, yticklabels=5, cbar_kws={"label": "angular distance, arccos(cosine) / π"})  # fmt: skip
    axis.invert_yaxis()
    for block, marker in zip(blocks, cycle("soDv^<>PX*"), strict=False):
        start, n = block["start"], block["block_size"]
        where = start + n + 0.5, start + 0.5  # seaborn's cell i reaches from i to i + 1
        look = {"ls": "", "marker": marker, "mfc": "white", "mec": "black", "ms": 7}
        axis.plot(*where, label=f"n = {n}: [{start}, {start + n})", **look)
    axis.legend(loc="upper left", title="chosen blocks of layers")
    axis.grid(False)
    axis.tick_params(rotation=0)
    axis.set(xlabel="state after the block, l + n", ylabel="state before the block, l")
    axis.set_title("Angular distance between layer inputs")
    return drawn


def distance_curves(curves: dict[int, np.ndarray], blocks: list[dict]) -> Figure:
    """d(l, n) against the block's start, a line per block size; the chosen block of each is ringed.

    Args:
        curves: {n: (L - n + 1,) angular distances of 0..1}.
        blocks: {start, distance} of each chosen block.
    """
    drawn, (axis,) = figure(height=4)
    for block_size, distances in curves.items():
        axis.plot(distances, label=f"n = {block_size}")
    rings = [(block["start"], block["distance"]) for block in blocks]
    axis.plot(*zip(*rings, strict=True), ls="", marker="o", mfc="none", mec="black", ms=11, mew=1.5, label="chosen")
    axis.set(xlabel="block start l (layer, 0-based)", ylabel="angular distance d(l, n), 0 to 1")
    axis.set_title("How far each block of n layers turns the state")
    log_scale(axis)
    axis.legend(**BELOW, ncols=6)
    return drawn


def block_influence(influence: np.ndarray) -> Figure:
    """Block Influence, 1 - cosine of a layer's input and output, against the layer; `influence` is (L,)."""
    drawn, (axis,) = figure(height=3.2)
    axis.plot(influence, color=COLOURS["self_data_ft"], marker="o")  # no bars: on a log scale they have no foot
    axis.set(xlabel="layer (0-based)", ylabel="Block Influence, 1 - cosine", title="How much each single layer does")
    log_scale(axis)
    return drawn


def log_scale(axis: Axes) -> None:
    """A log scale with plain numbers at 1, 2 and 5 of each decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def with_intervals(axis: Axes, points: list[tuple], **look) -> None:
    """The points (where, middle, (low, high)), joined from left to right, with their intervals."""
    if points:
        where, middle, intervals = (np.array(column) for column in zip(*sorted(points), strict=True))
        low, high = intervals.T
        axis.errorbar(where, middle, [middle - low, high - middle], capsize=3, **look)


def distillation_summary(statistics: dict) -> Figure:
    """What became of the rewrites, how the responses' length changed, and how likely the original model finds them.

    Args:
        statistics: {rows, reasons: {reason: rows}, words_original, words_distilled: words per response,
            nll (negative log-likelihood): {original, distilled: nats per token of each response}}.
    """
    drawn, (rates, lengths, losses) = figure(3, width=WIDEST, height=3.4)
    counts = pd.Series(statistics["reasons"]).sort_values(ascending=False)
    sns.barplot(x=100 * counts / statistics["rows"], y=counts.index, orient="y", color=COLOURS["self_data_ft"],
                saturation=1, errorbar=None, ax=rates)  # fmt: skip
    rates.bar_label(rates.containers[0], counts.astype(str), padding=3, fontsize=9)
    rates.set(xlabel=f"share of {statistics['rows']} rows (%)", ylabel="", xlim=(0, 112))
    rates.set_title("What became of the rewrites")
    _before_after(lengths, statistics["words_original"], statistics["words_distilled"])
    lengths.set(xlabel="words in a response", title="Length of the responses")
    _before_after(losses, statistics["nll"]["original"], statistics["nll"]["distilled"])
    losses.set(xlabel="NLL (nats per token)", title="NLL under the original model")
    return drawn


def _before_after(axis: Axes, original: list, distilled: list) -> None:
    bins = np.histogram_bin_edges([*original, *distilled], 20)
    series = {"sft": original, "self_data_ft": distilled}
    drawn = [_histogram(axis, values, bins=bins, arm=arm) for arm, values in series.items()]
    axis.set_ylabel("rows")
    axis.legend(drawn, ["original", "distilled set"], **BELOW, ncols=2)


def _histogram(axis: Axes, values, *, bins: np.ndarray, arm: str) -> Artist:
    """Counts per bin: SFT as filled bars, any other arm as an outline before them; returns what the legend shows."""
    filled, look = arm == "sft", {"element": "step", "fill": False, "lw": 1.8, "ls": LINES[arm], "marker": ""}
    if filled:
        look = {"alpha": 0.45, "hatch": HATCHES[arm], "edgecolor": COLOURS[arm], "linewidth": 0.8}
    axis.yaxis.get_major_locator().set_params(integer=True)
    sns.histplot(np.asarray(values), bins=bins, color=COLOURS[arm], ax=axis, legend=False, **look)
    return (axis.patches if filled else axis.lines)[-1]


def loss_curves(losses: dict[str, list]) -> Figure:
    """Training loss per optimiser step, a line per arm ({arm: [[step, nats per response token], ...]})."""
    drawn, (axis,) = figure(height=4)
    for arm, points in losses.items():
        look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": LINES[arm]}
        axis.plot(*np.transpose(points), label=NAMES[arm], markevery=ceil(len(points) / 20), **look)
    axis.set(xlabel="optimiser step", ylabel="loss (nats per response token)", title="Training loss")
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axis.legend(**BELOW, ncols=columns_of(len(losses)))
    return drawn


def slerp_curve(points: list[dict], angles: list[float], *, names: tuple[str, str], threshold: float,
                lerp_points: list[dict], mixture: dict | None, task_vectors: dict | None = None) -> Figure:  # fmt: skip
    """Recovery along the path between two parents with 95 % intervals, and the angles between their tensors.

    Args:
        points, lerp_points: {t, recovery, interval} of SLERP, parents included, and of LERP between them.
        angles: radians, one per tensor.
        names: the parents at t = 0 and t = 1.
        threshold: cosine above which SLERP becomes LERP.
        mixture: {recovery, interval} of the model trained on both sets, a horizontal line; None where there is none.
        task_vectors: {points, angles} of the SLERP of what training changed; None where there is none.
    """
    drawn, (scores, histogram) = figure(2, width=WIDEST, height=3.8)
    slerp = {"label": "SLERP", "color": COLOURS["merged"], "marker": "o", "ls": "-", "zorder": 2}
    lerp = {"label": "LERP", "color": "black", "marker": "s", "mfc": "none", "ms": 9, "ls": "--", "lw": 1, "zorder": 3}
    chord = [*lerp_points, *(point for point in points if point["t"] in (0, 1))]
    changes = {"label": "SLERP of task vectors", "color": COLOURS["text_kd"], "marker": "^", "ls": "-.", "zorder": 2}
    vectors = task_vectors or {"points": [], "angles": {}}
    for line, look in ((points, slerp), (chord, lerp), *([(vectors["points"], changes)] if task_vectors else [])):
        with_intervals(scores, [(point["t"], point["recovery"], point["interval"]) for point in line], **look)
    if mixture:
        scores.axhline(mixture["recovery"], color=COLOURS["self_data_ft"], ls=":", lw=2, label="trained on both sets")
        scores.axhspan(*mixture["interval"], color=COLOURS["self_data_ft"], alpha=0.12, lw=0)
    scores.set(xlabel=f"t (0: {names[0]}, 1: {names[1]})", ylabel="recovery (95 % interval)")
    scores.set_title("Recovery along the path")
    scores.legend(**BELOW, ncols=2 if task_vectors else 3)
    degrees, limit = np.degrees(angles), np.degrees(np.arccos(threshold))
    changed = np.degrees([*vectors["angles"].values()])
    # From 0 to beyond the limit, so that bars show how near it is.
    bins = np.linspace(0, 1.05 * max(limit, *degrees, *changed), 40)
    histogram.hist(degrees, bins, color=COLOURS["merged"], label="weights" if task_vectors else None)
    if task_vectors:
        histogram.hist(changed, bins, color=COLOURS["text_kd"], hatch="//", edgecolor="white", label="task vectors")
    histogram.axvline(limit, color="black", ls="--", label=f"below {limit:.2g}° SLERP is LERP")
    histogram.set(xlabel="angle between the parents (degrees)", ylabel="tensors", title="Angle of each tensor")
    histogram.legend(**BELOW, ncols=2)
    return drawn


def embedding_histogram(greedy: dict[str, np.ndarray], sampled: dict[str, np.ndarray]) -> Figure:
    """Distributions of the cosine to the original's greedy answer, with the means as marked lines.

    Both are {arm: (prompts,) cosines of -1..1}; greedy answers stand left, sampled ones, if there are any, right.
    """
    panels = {"greedy": greedy} | ({"sampled": sampled} if sampled else {})
    cosines = np.concatenate([values for by_arm in panels.values() for values in by_arm.values()])
    bins = np.linspace(min(0.0, cosines.min()), max(1.0, cosines.max()), 26)  # rounding may bring a cosine above 1
    drawn, axes = figure(len(panels), width=6.4 if len(panels) == 1 else WIDEST, height=4.2, sharey=True)
    for axis, (how, by_arm) in zip(axes, panels.items(), strict=True):
        shown = {}
        for arm, values in by_arm.items():
            bars, mean = _histogram(axis, values, bins=bins, arm=arm), np.mean(values)
            look = {"color": COLOURS[arm], "ls": LINES[arm], "marker": MARKERS[arm], "markevery": [1], "clip_on": False}
            shown[f"{NAMES[arm]}, mean {mean:.2f}"] = bars, axis.axvline(mean, ms=7, **look)
        axis.set(xlabel="cosine to the original's greedy answer", ylabel="prompts", title=f"{how} answers")
        axis.legend(shown.values(), shown.keys(), **BELOW)
    drawn.suptitle("Embedding similarity to the original's answers")
    return drawn


def foreignness_lines(points: list[dict]) -> Figure:
    """What was learnt against what was forgotten, a mark per row set and arm, a line per block size and data set.

    Args:
        points: of `answer_shift.foreignness_points`, at least one.
    """
    drawn, (axis,) = figure(height=4.4)
    groups: dict[tuple, list] = {}
    for point in points:
        groups.setdefault((point["block_size"], point["data_set"]), []).append(point)
    for (n, data_set), group in groups.items():
        group = sorted(group, key=lambda point: point["nll"])
        axis.plot(*zip(*((p["nll"], p["kl"]) for p in group), strict=True), color="0.6", lw=1, marker="", zorder=1)
        end = group[-1]["nll"], group[-1]["kl"]
        axis.annotate(f"{data_set}, n = {n}", end, (6, 0), textcoords="offset points", va="center", size=8)
    for arm in arms_in(points):
        own = [point for point in points if point["arm"] == arm]
        look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": "", "ms": 7, "label": NAMES[arm]}
        axis.plot([point["nll"] for point in own], [point["kl"] for point in own], **look)
    axis.margins(x=0.2)
    axis.set(xlabel="NLL of the learnt responses under the original (nats per token)",
             ylabel="KL from the original (nats per token)")  # fmt: skip
    axis.set_title("How foreign the training text is, and how far it moves the model")
    axis.legend(**BELOW, ncols=columns_of(len(arms_in(points))))
    return drawn


def shift_scatter(points: list[dict]) -> Figure:
    """A mark per fine-tuned model {arm, similarity: mean cosine of -1..1, lost: average score of 0..1}."""
    drawn, (axis,) = figure(height=4)
    table = pd.DataFrame({"arm": p["arm"], "similarity": p["similarity"], "lost": 100 * p["lost"]} for p in points)
    arms = arms_in(points)
    sns.scatterplot(table, x="similarity", y="lost", hue="arm", style="arm", hue_order=arms, style_order=arms,
                    palette=COLOURS, markers=MARKERS, s=60, ax=axis)  # fmt: skip
    axis.axhline(0, color="black", lw=0.8, ls=":")
    axis.set(xlabel="mean cosine to the original's greedy answers", ylabel="average points lost to the original")
    axis.set_title("Moved answers against lost accuracy, a mark per model")
    sns.move_legend(axis, **BELOW, ncols=columns_of(len(arms)), title=None, labels=[NAMES[arm] for arm in arms])
    return drawn
