"""Tables and figures of how layers are chosen: which ones each strategy takes, and the damage that this does."""

from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdd_utils.analysis.layer_damage import KL, LOST_BITS, damage
from sdd_utils.base.number_format import percent
from sdd_utils.base.strategies import DRAWS, STRATEGIES, draws_of
from sdd_utils.report.figures import COLOURS, LINES, MARKERS, NAMES, WIDEST, figure, log_scale, with_intervals
from sdd_utils.report.tables import FAVOURS

_LOOKS = {  # name, colour, marker, line style; the two arms that are healed keep theirs
    "angular": ("angular block, the paper's", "#000000", "s", "-"),
    "block_influence": ("least Block Influence", "#CC79A7", "v", "-."),
    "deepest_but_last": ("deepest but the last", "#009E73", "D", (0, (5, 1, 1, 1, 1, 1))),
    "iterative": ("iterative", "#D55E00", "X", (0, (3, 1))),
    "random": ("random", "#777777", "*", ":"),
}
STRATEGY_NAMES = {strategy: look[0] for strategy, look in _LOOKS.items()}
_MEASURES = {LOST_BITS: "bits per byte lost", KL: "KL, nats per token"}
_PANELS = {LOST_BITS: "on right answers, {tasks}", KL: "on the original's answers"}


def chosen_layers(choices: list[dict], depth: int) -> Figure:
    """Which layers each strategy removes: a panel per block size, a line per choice, a dark cell per removed layer.

    Args:
        choices: {strategy, draw, block_size, removed} each.
        depth: layers of the model.
    """
    sizes = sorted({choice["block_size"] for choice in choices})
    lines = max(sum(choice["block_size"] == n for choice in choices) for n in sizes)
    height = len(sizes) * (0.24 * lines + 0.45) + 0.8
    drawn, axes = figure(rows=len(sizes), width=WIDEST, height=height, sharex=True)
    for axis, n in zip(axes, sizes, strict=True):
        own = [choice for choice in choices if choice["block_size"] == n]
        removed = np.array([np.isin(np.arange(depth), choice["removed"]) for choice in own], dtype=float)
        axis.pcolormesh(removed, cmap="Greys", vmin=0, vmax=1.3, edgecolors="0.8", linewidth=0.5)
        axis.set_yticks(np.arange(len(own)) + 0.5, [_named(choice) for choice in own])
        axis.set_xticks(np.arange(0, depth, 5) + 0.5, range(0, depth, 5))
        axis.invert_yaxis()
        axis.grid(visible=False)
        axis.set_title(f"n = {n}")
        axis.tick_params(left=False)
    axes[-1].set_xlabel("layer (0-based)")
    drawn.suptitle("Which layers each strategy removes (dark)")
    return drawn


def _named(choice: dict) -> str:
    draw = f", draw {choice['draw'] + 1}" if draws_of(choice["strategy"]) > 1 else ""
    return STRATEGY_NAMES[choice["strategy"]] + draw


def job_damage(original: dict, models: list[dict], *, block_size: int) -> list[dict]:
    """Damage of the models of one job of 02b, with bits per byte over all tasks; see `layer_damage.damage`.

    Args:
        original: the record of block size 0.
    """
    own = {"step": "selection", "params": {"block_size": block_size}, "metrics": {"models": models}}
    return damage([original, own], {})


def damage_curves(points: list[dict], *, tasks: str = "out of domain") -> Figure:
    """Damage against the layers removed, a panel per measure, a line per strategy and per arm that was fine-tuned.

    The random control is a band from the least to the most of its draws, around their mean.

    Args:
        points: of `layer_damage.damage`.
        tasks: which ones bits per byte are of, for the title.
    """
    measures = [name for name in _MEASURES if any(point["measure"] == name for point in points)]
    drawn, axes = figure(len(measures), width=WIDEST if len(measures) > 1 else 6.4, height=4.6)
    legend = {}
    for axis, measure in zip(axes, measures, strict=True):
        own = [point for point in points if point["measure"] == measure]
        _draw_damage(axis, own)
        axis.set(xlabel="layers removed, n", ylabel=f"{_MEASURES[measure]} (95 % interval)")
        tuned = measure == KL and any(point["arm"] != "no_ft" for point in own)
        axis.set_title(_PANELS[measure].format(tasks=tasks) + tuned * f" (favour {NAMES['self_data_ft']})")
        legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    drawn.suptitle("What removing layers costs, by how they were chosen")
    drawn.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3)
    return drawn


def _draw_damage(axis: Axes, points: list[dict]) -> None:
    sizes = sorted({point["block_size"] for point in points})
    gap = float(min(np.diff(sizes), default=2))
    for (strategy, arm), group in _lines(points).items():
        if draws_of(strategy) > 1:
            _draw_band(axis, group, gap=gap)
            continue
        tuned = arm != "no_ft"
        name, colour, marker, line = _LOOKS[strategy]
        if tuned:
            name, colour, marker, line = f"angular block, {NAMES[arm]}", COLOURS[arm], MARKERS[arm], LINES[arm]
        places = [(point["block_size"], point["value"], point["interval"]) for point in group]
        with_intervals(axis, places, label=name, color=colour, marker=marker, ls=line)
    axis.set_xticks(sizes)
    axis.set_xlim(sizes[0] - gap / 2, sizes[-1] + gap / 2)
    if min(point["value"] for point in points) > 0:
        log_scale(axis)


def _lines(points: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Points by (strategy, arm), the random band first, so that it lies behind."""
    pairs = dict.fromkeys((point["strategy"], point["arm"]) for point in points)
    return {
        (strategy, arm): [point for point in points if (point["strategy"], point["arm"]) == (strategy, arm)]
        for strategy, arm in sorted(pairs, key=lambda pair: draws_of(pair[0]) == 1)
    }


def _draw_band(axis: Axes, points: list[dict], *, gap: float) -> None:
    name, colour, marker, line = _LOOKS["random"]
    sizes = [point["block_size"] for point in points]
    least, most = ([pick(point["draws"]) for point in points] for pick in (min, max))
    if len(sizes) == 1:  # a band needs some width
        sizes, least, most = [sizes[0] - gap / 8, sizes[0] + gap / 8], 2 * least, 2 * most
    label = f"{name}, least to most of {DRAWS} draws"
    axis.fill_between(sizes, least, most, color=colour, alpha=0.25, lw=0, label=label)
    look = {"color": colour, "marker": marker, "ls": line, "label": f"{name}, mean"}
    axis.plot([point["block_size"] for point in points], [point["value"] for point in points], **look)


def damage_table(points: list[dict], choices: list[dict]) -> pd.DataFrame:
    """Damage by block size, strategy and arm, with the layers that went; of random layers the least and most.

    KL is measured on the original's own answers, so where models were fine-tuned it favours Self-Data FT.

    Args:
        points: of `layer_damage.damage`.
        choices: of the record of 01, {strategy, draw, block_size, removed, agreement} each.
    """
    first = {(choice["strategy"], choice["block_size"]): choice for choice in choices if choice["draw"] == 0}
    rows: dict[tuple, dict] = {}
    for point in points:
        strategy, n = point["strategy"], point["block_size"]
        choice = first[strategy, n]
        cells = {"n": n, "layers chosen by": STRATEGY_NAMES[strategy], "fine-tuning": NAMES[point["arm"]]}
        cells |= dict.fromkeys(_MEASURES.values(), "-")
        drawn = draws_of(strategy) > 1
        cells["removed layers"] = f"{DRAWS} draws" if drawn else in_words(choice["removed"])
        agreement = choice["agreement"]
        cells["same by a second calibration set"] = "-" if agreement is None else percent(agreement)
        row = rows.setdefault((n, list(STRATEGIES).index(strategy), list(NAMES).index(point["arm"])), cells)
        row[_MEASURES[point["measure"]]] = _damage_cell(point)
    lines = [rows[key] for key in sorted(rows)]
    if any(point["arm"] != "no_ft" for point in points):
        favours = {"fine-tuning": FAVOURS, _MEASURES[KL]: NAMES["self_data_ft"]}
        lines.insert(0, dict.fromkeys(lines[0], "-") | favours)
    return pd.DataFrame(lines)


def _damage_cell(point: dict) -> str:
    if draws_of(point["strategy"]) > 1:
        return f"{point['value']:z.3f} ({min(point['draws']):z.3f} to {max(point['draws']):z.3f})"
    low, high = point["interval"]
    return f"{point['value']:z.3f} [{low:z.3f}, {high:z.3f}]"


def in_words(layers: list[int]) -> str:
    """Layers as text, neighbours together, e.g. "3, 7-9"."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
