"""The figures of what models score: healed share, recovery, and each measure task by task.

They follow the rules of `figures`. An axis shows every value; an interval that reaches far beyond all of them is cut,
and an arrow says so.
"""

from collections.abc import Callable
from math import ceil
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import markers, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdd_utils.analysis.statistics import ACCURACY, BITS, CHOICE, HAS_CHANCE
from sdd_utils.base.number_format import percent
from sdd_utils.data.arms import arms_in
from sdd_utils.report.figures import COLOURS, LINES, MARKERS, NAMES, WIDEST, columns_of, figure, with_intervals

DOMAINS = {"healed_out_of_domain": "other tasks", "healed_in_domain": "tasks of its domain (favour SFT)"}
_SHOWN = {
    ACCURACY: "accuracy, 0 to 1",
    CHOICE: "choice probability, 0 to 1",
    BITS: "bits per byte (less is better)",
}
_REACH = 0.5  # how far beyond all values an interval is drawn, as a share of the original


def healed_points(rows: list[dict]) -> list[dict]:
    """What `healed_shares` draws, {arm, block_size, data_set, domain, tasks, value, interval} per share that there is.

    Args:
        rows: see `forgetting.with_domains`; `domain` is a key of `DOMAINS`.
    """
    return [
        {name: row[name] for name in ("arm", "block_size", "data_set")}
        | {"domain": domain, "tasks": row[domain]["tasks"], "value": row[domain]["share"]}
        | {"interval": row[domain]["interval"]}
        for row in rows
        for domain in DOMAINS
        if row.get(domain)
    ]


def healed_shares(points: list[dict]) -> Figure:
    """The headline: what each arm wins back of the bits per byte that pruning lost, in and out of the training domain.

    A panel per data set; at several block sizes a panel per data set and domain, with a line per arm.

    Args:
        points: see `healed_points`; a value is a share, 0 is No FT and 1 the original.
    """
    sizes = {point["block_size"] for point in points}
    drawn, axes = (_healed_by_size if len(sizes) > 1 else _healed_by_domain)(points)
    drawn.suptitle("Healed share: how much of what pruning lost does fine-tuning win back?")
    return drawn


_HEALED = {"marks": {0.0: "No FT", 1.0: "original"}, "ylabel": "share of the lost bits per byte\nwon back"}


def _healed_by_size(points: list[dict]) -> tuple[Figure, np.ndarray]:
    panels = {
        f"fine-tuned on {name},\nscored on {shown}": [
            point for point in points if (point["data_set"], point["domain"]) == (name, domain)
        ]
        for domain, shown in DOMAINS.items()
        for name in sorted({point["data_set"] for point in points})
    }
    return _by_block_size({title: own for title, own in panels.items() if own}, arms_in(points), **_HEALED)


def _healed_by_domain(points: list[dict]) -> tuple[Figure, np.ndarray]:
    names, arms = sorted({point["data_set"] for point in points}), arms_in(points)
    domains = [domain for domain in DOMAINS if any(point["domain"] == domain for point in points)]
    panels = {f"fine-tuned on {name}, n = {points[0]['block_size']}": [p for p in points if p["data_set"] == name]
              for name in names}  # fmt: skip
    dodge = 0.6 / len(arms)
    drawn, axes = _panels(
        panels, arms, lambda point, step: domains.index(point["domain"]) + dodge * step, joined=False, **_HEALED
    )
    for axis, own in zip(axes, panels.values(), strict=True):
        labels = [_domain_label(own, domain, width=48 // min(len(panels), 3)) for domain in domains]
        axis.set_xticks(range(len(domains)), labels)
        axis.set(xlim=(-0.5, len(domains) - 0.5), xlabel="scored on")
        axis.grid(visible=False, axis="x")
        if "healed_in_domain" in domains:
            axis.axvspan(domains.index("healed_in_domain") - 0.5, len(domains) - 0.5, color="0.93", lw=0, zorder=0)
        for point in own if len(arms) <= 2 else ():  # of more arms the names would stand on each other
            step = arms.index(point["arm"]) - (len(arms) - 1) / 2
            where = domains.index(point["domain"]) + dodge * step, point["value"]
            side = -1 if step < 0 else 1  # away from the other arm's interval
            look = {"textcoords": "offset points", "size": 9, "ha": "right" if side < 0 else "left"}
            ground = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.8}  # a dashed line may lie behind
            axis.annotate(percent(point["value"]), where, (6 * side, 3), bbox=ground, **look)
    return drawn, axes


def _domain_label(points: list[dict], domain: str, *, width: int) -> str:
    """A domain's name with its tasks below."""
    tasks = next((point["tasks"] for point in points if point["domain"] == domain), ["none, or nothing was lost"])
    return f"{fill(DOMAINS[domain], width)}:\n{fill(', '.join(tasks), width)}"


def recovery_grid(rows: list[dict]) -> Figure:
    """Recovery against block size, one panel per data set, a line per arm, 95 % intervals.

    Args:
        rows: {data_set, block_size, arm, recovery, interval}; recovery is a share, 1 is the original. Rows without a
            data set belong to every panel.
    """
    tuned = arms_in(rows)
    data_sets = sorted({row["data_set"] for row in rows if row["arm"] in tuned})
    points = [row | {"value": row["recovery"]} for row in rows if row["block_size"]]
    panels = {f"fine-tuned on {name}": [point for point in points if point["data_set"] in ("", name)]
              for name in data_sets}  # fmt: skip
    drawn, _ = _by_block_size(panels, ["no_ft", *tuned], **_RECOVERY)
    drawn.suptitle("Recovery: the average accuracy as a share of the original's")
    return drawn


_RECOVERY = {"marks": {1.0: "original"}, "ylabel": "recovery"}


def scaling_curves(rows: list[dict]) -> Figure:
    """Recovery against the number of training rows, a panel per data set, 95 % intervals.

    At the block size that was fine-tuned on most numbers of rows, the largest of several.

    Args:
        rows: {arm, block_size, data_set, rows, recovery, interval}; recovery is a share, 1 is the original.
    """
    sizes = [n for n, _, _ in {(row["block_size"], row["data_set"], row["rows"]) for row in rows}]
    size = max(sizes, key=lambda n: (sizes.count(n), n))
    shown = [row | {"value": row["recovery"]} for row in rows if row["block_size"] == size]
    panels = {f"fine-tuned on {name}, n = {size}": [row for row in shown if row["data_set"] == name]
              for name in sorted({row["data_set"] for row in shown})}  # fmt: skip
    drawn, axes = _panels(panels, arms_in(rows), lambda row, step: row["rows"] * 1.04**step, **_RECOVERY)
    for axis, points in zip(axes, panels.values(), strict=True):
        counts = sorted({point["rows"] for point in points})
        axis.set(xlabel="training rows", xscale="log", xlim=(counts[0] / 1.5, counts[-1] * 1.5))
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
    drawn.suptitle("Recovery against the number of training rows")
    return drawn


def _by_block_size(panels: dict[str, list[dict]], arms: list[str], **look) -> tuple[Figure, np.ndarray]:
    sizes = sorted({point["block_size"] for points in panels.values() for point in points})
    gap = min(np.diff(sizes), default=2)
    dodge = gap * min(0.08, 0.48 / len(arms))  # less than half a gap for all arms together
    drawn, axes = _panels(panels, arms, lambda row, step: row["block_size"] + dodge * step, **look)
    plt.setp(axes, xlabel="block size n (layers removed)", xticks=sizes, xlim=(sizes[0] - gap / 2, sizes[-1] + gap / 2))
    return drawn, axes


def _panels(
    panels: dict[str, list[dict]], arms: list[str], place: Callable, *, marks: dict[float, str], ylabel: str,
    joined: bool = True,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """A panel per title, of points {arm, value, interval} that are shares.

    Args:
        place: a point's place on the x-axis, given its arm's steps from the middle arm.
        marks: horizontal lines and their names.
        joined: whether lines join the points of an arm.
    """
    rows = ceil(len(panels) / 3)
    columns = ceil(len(panels) / rows)
    width, height = (6.4, 4.2) if len(panels) == 1 else (WIDEST, 3.1 * rows + 0.9)
    drawn, axes = figure(columns, rows=rows, width=width, height=height, sharey=True)
    for unused in axes[len(panels) :]:
        unused.remove()
    every = [point for points in panels.values() for point in points]
    limits, cut = _readable(every, list(marks))
    ylabel += " (95 % interval;\narrow: it goes on)" if cut else " (95 % interval)"
    legend = {}
    for axis, (title, points) in zip(axes, panels.items(), strict=False):
        for step, arm in enumerate(arms, start=1):
            mine, moved = [point for point in points if point["arm"] == arm], step - (len(arms) + 1) / 2
            line = [(place(point, moved), point["value"], point["interval"]) for point in mine]
            look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": LINES[arm] if joined else ""}
            with_intervals(axis, line, label=NAMES[arm], **look)
            _arrows(axis, line, limits, color=COLOURS[arm])
        axis.set(title=title, ylim=limits, ylabel=ylabel if axis.get_subplotspec().is_first_col() else "")
        axis.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0, symbol=" %"))
        legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        _name_lines(axis, marks)
    beside = columns_of(len(legend), width=drawn.get_figwidth())
    drawn.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=beside)
    return drawn, axes[: len(panels)]


def _readable(points: list[dict], marks: list[float]) -> tuple[tuple[float, float], bool]:
    """Limits of an axis with every value and mark, and intervals as far as `_REACH` beyond; whether any is cut."""
    shown = [*marks, *(point["value"] for point in points)]
    ends = [end for point in points for end in point["interval"]]
    low, high = max(min(shown) - _REACH, min(shown + ends)), min(max(shown) + _REACH, max(shown + ends))
    margin = 0.05 * (high - low)
    return (low - margin, high + margin), min(ends) < low - margin or max(ends) > high + margin


def _arrows(axis: Axes, points: list[tuple], limits: tuple[float, float], *, color: str) -> None:
    """An arrow at the edge where an interval goes on beyond it."""
    low, high = limits
    for edge, marker, beyond in (
        (low, markers.CARETDOWN, [where for where, _, ends in points if ends[0] < low]),
        (high, markers.CARETUP, [where for where, _, ends in points if ends[1] > high]),
    ):
        if beyond:
            axis.plot(beyond, [edge] * len(beyond), ls="", marker=marker, ms=8, color=color, clip_on=False)


def _name_lines(axis: Axes, marks: dict[float, str]) -> None:
    """Dashed lines, whose names stand right of the panel, where no data lie."""
    for value, name in marks.items():
        axis.axhline(value, color="black", lw=1, ls="--", zorder=1)
        axis.annotate(name, (1, value), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", size=9, annotation_clip=False)  # fmt: skip


def score_dots(scores: dict[str, dict[str, dict]]) -> Figure:
    """Accuracy, choice probability and bits per byte of each task, a dot per model with its 95 % interval.

    Args:
        scores: {arm: scores by task}, the same tasks in each arm. A measure that no task has is left out.
    """
    drawn = _measures({"task": scores})
    drawn.suptitle("What each measure sees, with 95 % intervals")
    return drawn


def study_scores(rows: list[dict], *, block_size: int) -> Figure:
    """`score_dots` of a study at one block size: a row of panels per data set, the original and No FT in each.

    Args:
        rows: see `model_grid.model_grid`.
    """
    tuned = arms_in(rows)
    of_size = [row for row in rows if row["block_size"] == block_size and row["arm"] in ("no_ft", *tuned)]
    shown = [*(row for row in rows if row["arm"] == "original"), *of_size]
    names = sorted({row["data_set"] for row in of_size if row["data_set"]})
    order = ["original", "no_ft", *tuned]
    panels = {
        f"fine-tuned on {name}": {
            row["arm"]: row["scores"]
            for row in sorted(shown, key=lambda row: order.index(row["arm"]))
            if row["data_set"] in ("", name)
        }
        for name in names
    }
    drawn = _measures(panels)
    drawn.suptitle(f"What each measure sees at n = {block_size}, with 95 % intervals")
    return drawn


def _measures(panels: dict[str, dict[str, dict]]) -> Figure:
    """A row of panels per title, which names the y-axis, and a panel per measure; the tasks share the y-axis."""
    every = [scores for by_arm in panels.values() for scores in by_arm.values()]
    measures = [measure for measure in _SHOWN if any(measure in score for score in every[0].values())]
    tasks = [task for task, score in every[0].items() if any(measure in score for measure in measures)]
    arms = list(dict.fromkeys(arm for by_arm in panels.values() for arm in by_arm))
    height = max(0.18 * len(tasks) * (len(arms) + 1) + 0.7, 1.5)
    drawn, axes = figure(len(measures), rows=len(panels), width=WIDEST, height=height * len(panels) + 0.8,
                         sharex="col", sharey=True)  # fmt: skip
    legend = {}
    for row, (title, by_arm) in zip(axes.reshape(len(panels), -1), panels.items(), strict=True):
        for axis, measure in zip(row, measures, strict=True):
            _dots(axis, by_arm, tasks, arms, measure)
            axis.set(xlabel=_SHOWN[measure], title=name_of(measure))
            legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        row[0].set_ylabel(title)
    axes[0].set(yticks=range(len(tasks)), yticklabels=tasks, ylim=(len(tasks) - 0.5, -0.5))
    beside = columns_of(len(legend), width=drawn.get_figwidth())
    drawn.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=beside)
    return drawn


def name_of(measure: str) -> str:
    """A measure in words."""
    return measure.replace("_", " ").removeprefix("gold ")


def _dots(axis: Axes, by_arm: dict[str, dict], tasks: list[str], arms: list[str], measure: str) -> None:
    """One measure of every task, a dot per model, and what guessing scores."""
    first = next(iter(by_arm.values()))
    places = {task: place for place, task in enumerate(tasks) if measure in first[task]}
    for step, arm in enumerate(arms, start=1):
        if arm not in by_arm:
            continue
        measured = [by_arm[arm][task][measure] for task in places]
        where = np.array([*places.values()]) + 0.7 / len(arms) * (step - (len(arms) + 1) / 2)
        reach = [1.96 * one["stderr"] for one in measured]
        look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": "", "capsize": 2.5}
        axis.errorbar([one["value"] for one in measured], where, xerr=reach, label=NAMES[arm], **look)
    chance = {place: first[task]["chance"] for task, place in places.items() if measure in HAS_CHANCE}
    chance = np.array([(place, value) for place, value in chance.items() if value])
    if len(chance):
        look = {"colors": "black", "linestyles": "--", "lw": 1.2, "label": "chance"}
        axis.vlines(chance[:, 1], chance[:, 0] - 0.45, chance[:, 0] + 0.45, **look)
    for place in range(1, len(tasks), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="0.95", lw=0, zorder=0)
    axis.grid(visible=False, axis="y")
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
