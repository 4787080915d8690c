"""Every figure of the project, in one style that colour-blind readers and grey printers can tell apart.

Each function takes plain data, draws one figure and returns it; `save` writes it as PNG and PDF.
"""

from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from sdd_utils.data.arms import arms_in

_LOOKS = {  # name, colour of Okabe and Ito's palette, marker, hatch: no line or bar is told by colour alone
    "original": ("Original", "#000000", "D", ""),
    "no_ft": ("No FT", "#999999", "s", ".."),
    "sft": ("SFT", "#E69F00", "^", "//"),
    "self_data_ft": ("Self-Data FT", "#0072B2", "o", ""),
    "self_generated_ft": ("Self-generated FT", "#CC79A7", "v", "\\\\"),
    "mixed_ft": ("Mixed FT", "#56B4E9", "X", "--"),
    "merged": ("Self-Data FT, SLERP", "#009E73", "P", "xx"),
}
NAMES, COLOURS, MARKERS, HATCHES = ({arm: look[i] for arm, look in _LOOKS.items()} for i in range(4))
_CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
_STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=_CYCLE, marker=["o", "^", "s", "D", "P", "X"]),
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
}


def figure(columns: int = 1, *, width: float = 6.4, height: float = 3.8, **subplots) -> tuple[Figure, np.ndarray]:
    """A figure in the project's style and its axes, always as a flat array."""
    plt.rcParams.update(_STYLE)
    drawn, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, **subplots)
    return drawn, axes.ravel()


def save(drawn: Figure, folder: Path, name: str) -> list[Path]:
    """Write `<name>.png` and `<name>.pdf`, without timestamps, so that the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    drawn.savefig(paths[0], metadata={"Software": None})
    drawn.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def similarity_heatmap(angular_map: np.ndarray, blocks: list[dict]) -> Figure:
    """The angular map: row l, column l + n; each chosen block is a marked cell, named in the legend."""
    drawn, (axis,) = figure(width=5.6, height=4.6)
    shown = np.ma.masked_array(angular_map, mask=np.tril(np.ones_like(angular_map, dtype=bool)))
    image = axis.imshow(shown, cmap="cividis", origin="lower")
    for block, marker in zip(blocks, cycle("sohDv^"), strict=False):
        end = block["start"] + block["block_size"]
        name = f"n = {block['block_size']}: layers [{block['start']}, {end})"
        axis.plot(end, block["start"], ls="", marker=marker, mfc="white", mec="black", ms=8, label=name)
    axis.legend(loc="upper left", title="chosen blocks")
    axis.grid(False)
    axis.set(
        xlabel="state after the block, l + n",
        ylabel="state before the block, l",
        title="Angular distance between layer inputs",
    )
    drawn.colorbar(image, label="angular distance (1 = opposite)")
    return drawn


def distance_curves(curves: dict[int, np.ndarray], blocks: list[dict]) -> Figure:
    """d(l, n) against the block's start, a line per block size; the argmin of each is ringed."""
    drawn, (axis,) = figure()
    for block_size, distances in curves.items():
        axis.plot(distances, label=f"n = {block_size}")
    for block in blocks:
        axis.plot(block["start"], block["distance"], "o", mfc="none", mec="black", ms=10, mew=1.5)
    axis.set(
        xlabel="block start l (0-based)",
        ylabel="angular distance d(l, n)",
        title="How much each block of n layers does",
    )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.2g}"))
    axis.yaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:.2g}"))
    axis.legend(ncols=2)
    return drawn


def block_influence(influence: np.ndarray) -> Figure:
    """Block Influence of every layer."""
    drawn, (axis,) = figure(height=3.0)
    axis.bar(np.arange(len(influence)), influence, color=COLOURS["self_data_ft"])
    axis.set(
        xlabel="layer (0-based)",
        ylabel="Block Influence, 1 - cos",
        title="Block Influence: what one layer does",
        yscale="log",
    )
    return drawn


def score_bars(scores: dict[str, dict[str, dict]]) -> Figure:
    """Score per task with 95 % intervals, a bar per model in `scores` ({arm: {task: score}}); dashed: chance."""
    arms = list(scores)
    tasks = [task for task, score in scores[arms[0]].items() if score["higher_is_better"]]
    drawn, (axis,) = figure(width=1.6 * len(tasks) + 2.4)
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        where = np.arange(len(tasks)) + (index - (len(arms) - 1) / 2) * width
        errors = [1.96 * scores[arm][task]["stderr"] for task in tasks]
        axis.bar(where, [scores[arm][task]["value"] for task in tasks], width, yerr=errors, capsize=3, label=NAMES[arm],
                 color=COLOURS[arm], alpha=0.85, hatch=HATCHES[arm], edgecolor="white")  # fmt: skip
    for index, task in enumerate(tasks):
        axis.hlines(scores[arms[0]][task]["chance"], index - 0.45, index + 0.45, colors="black", linestyles="--", lw=1)
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set(ylabel="score (95 % interval)", ylim=(0, None), title="Scores (dashed: chance)")
    axis.legend()
    return drawn


def distillation_summary(statistics: dict) -> Figure:
    """What became of the responses, how their length changed, and how likely the unpruned model finds either."""
    drawn, (rates, lengths, losses) = figure(3, width=13)
    counts = statistics["reasons"]
    bars = rates.barh([*counts], [n / statistics["rows"] for n in counts.values()], color=COLOURS["self_data_ft"])
    rates.bar_label(bars, [str(count) for count in counts.values()], padding=3)
    rates.set(xlabel="share of rows", xlim=(0, 1.08), title="Conditional selection")
    _before_after(lengths, statistics["words_original"], statistics["words_distilled"], xlabel="words in a response")
    _before_after(losses, *(statistics["nll"][name] for name in ("original", "distilled")), xlabel="nats per token")
    losses.set(title="NLL under the unpruned model")
    return drawn


def _before_after(axis, original: list, distilled: list, *, xlabel: str) -> None:
    bins = np.histogram_bin_edges(original + distilled, 20)
    axis.hist(original, bins, color=COLOURS["sft"], alpha=0.7, label="original", hatch="//", edgecolor="white")
    axis.hist(distilled, bins, color=COLOURS["self_data_ft"], histtype="step", lw=2, label="distilled set")
    axis.set(xlabel=xlabel, ylabel="rows", title="Length of the training responses")
    axis.legend()


def loss_curves(losses: dict[str, list]) -> Figure:
    """Training loss per optimiser step, a line per arm ({arm: [[step, loss], ...]})."""
    drawn, (axis,) = figure()
    for arm, points in losses.items():
        steps, values = np.asarray(points).T
        axis.plot(steps, values, color=COLOURS[arm], marker=MARKERS[arm], label=NAMES[arm])
    axis.set(xlabel="optimiser step", ylabel="loss (nats per response token)", title="Training loss")
    axis.legend()
    return drawn


def recovery_grid(rows: list[dict]) -> Figure:
    """The headline: recovery against block size, one panel per data set, a line per arm, 95 % intervals.

    Args:
        rows: {data_set, block_size, arm, recovery, interval}; rows without a data set belong to every panel.
    """
    data_sets = sorted({row["data_set"] for row in rows if row["arm"] == "sft"})
    arms = ["no_ft", *arms_in(rows)]
    drawn, axes = figure(len(data_sets), width=4.6 * len(data_sets), sharey=True)
    for axis, data_set in zip(axes, data_sets, strict=True):
        for place, arm in enumerate(arms):
            own = [row for row in rows if row["arm"] == arm and row["data_set"] in ("", data_set)]
            own, shift = sorted(own, key=lambda row: row["block_size"]), 0.12 * (place - (len(arms) - 1) / 2)
            _interval_line(axis, own, arm=arm, at="block_size", shift=shift)
        axis.axhline(1, color="black", lw=1, ls="--")
        axis.set(xlabel="block size n (layers removed)", title=f"fine-tuned on {data_set}")
        axis.set_xticks(sorted({row["block_size"] for row in rows}))
    axes[0].set_ylabel("recovery of the original's average score")
    axes[0].legend()
    return drawn


def scaling_curves(rows: list[dict]) -> Figure:
    """Recovery against the number of training rows, a panel per data set, 95 % intervals.

    At the block size that was fine-tuned on most numbers of rows, the largest of several.

    Args:
        rows: {data_set, block_size, arm, rows, recovery, interval}.
    """
    counted = {(row["block_size"], row["data_set"], row["rows"]) for row in rows}
    sizes = [n for n, _, _ in counted]
    shown = max(sizes, key=lambda n: (sizes.count(n), n))
    data_sets = sorted({row["data_set"] for row in rows})
    drawn, axes = figure(len(data_sets), width=3.6 * len(data_sets) + 1, sharey=True)
    arms = arms_in(rows)
    for axis, data_set in zip(axes, data_sets, strict=True):
        for place, arm in enumerate(arms):
            own = [row for row in rows if (row["arm"], row["data_set"]) == (arm, data_set)]
            own, stretch = [r for r in own if r["block_size"] == shown], 1 + 0.04 * (place - (len(arms) - 1) / 2)
            _interval_line(axis, own, arm=arm, at="rows", stretch=stretch)
        counts = sorted({row["rows"] for row in rows if row["data_set"] == data_set})
        axis.set(xscale="log", xlim=(counts[0] / 1.5, counts[-1] * 1.5))
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.set(xlabel="training rows", title=f"fine-tuned on {data_set}, n = {shown}")
    axes[0].set_ylabel("recovery (95 % interval)")
    axes[0].legend()
    return drawn


def _interval_line(axis, rows: list[dict], *, arm: str, at: str, shift: float = 0, stretch: float = 1) -> None:
    """Recovery with intervals against the key `at`, moved a little so that arms do not hide each other."""
    if not rows:
        return
    middle = np.array([row["recovery"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    where = [row[at] * stretch + shift for row in rows]
    look = {"color": COLOURS[arm], "marker": MARKERS[arm], "label": NAMES[arm], "capsize": 3}
    axis.errorbar(where, middle, [middle - low, high - middle], **look)


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
