"""The tables and the figure of speculative decoding with pruned models as drafts; see `analysis.speculation`."""

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdd_utils.analysis.speculation import (
    LONGEST,
    MEASURES,
    best_draft,
    cost_ratios,
    pooled_acceptance,
    speed_up,
    tokens_per_pass,
)
from sdd_utils.base.number_format import percent
from sdd_utils.report.figures import COLOURS, LINES, MARKERS, NAMES, WIDEST, figure, with_intervals
from sdd_utils.report.tables import FAVOURS

_NAMES = {measure: measure.replace("_", " ") for measure in MEASURES}


def acceptance_table(metrics: dict) -> pd.DataFrame:
    """A line per block size and arm: acceptance, cost ratio, and the draft length that is best by the greedy one.

    Args:
        metrics: of the record of 07.
    """
    ratios, rows = cost_ratios(metrics), [pooled_acceptance(metrics, measure=measure) for measure in MEASURES]
    lines = []
    for greedy, sampling in zip(*rows, strict=True):
        ratio = ratios[greedy["block_size"]]
        drafted, gain = best_draft(greedy["acceptance"], cost_ratio=ratio["measured"])
        line = {"n": greedy["block_size"], "model": NAMES[greedy["arm"]], "seeds": greedy["seeds"]}
        for measure, row in zip(MEASURES, (greedy, sampling), strict=True):
            line[_NAMES[measure]] = percent(row["acceptance"], row["interval"])
        line |= {f"greedy, {name}": percent(value) for name, value in greedy["by_answers"].items()}
        line |= {"cost ratio": f"{ratio['measured']:.2f}", "by weights": f"{ratio['parameters']:.2f}"}
        lines.append(line | {"best draft tokens": drafted, "expected speed-up": f"{gain:.2f}"})
    favours = {column: NAMES["self_data_ft"] if "acceptance" in column or "," in column else "-" for column in lines[0]}
    return pd.DataFrame([favours | {"model": FAVOURS}, *lines])


def decoding_table(metrics: dict) -> pd.DataFrame:
    """A line per draft that decoded: forecast and decoding side by side."""
    ratios, lines = {cost["block_size"]: cost["seconds"] for cost in metrics["costs"]}, []
    for run in metrics["decoding"]:
        seconds = ratios[metrics["drafts"][run["draft"]]["block_size"]]
        forecast = {"acceptance": run["greedy_acceptance"], "draft_tokens": run["draft_tokens"]}
        costs = {"cost_ratio": seconds["draft"] / seconds["original"]}
        verified = costs | {"verification": seconds["verification"] / seconds["original"]}
        line = {
            "draft": run["draft"],
            "tokens drafted at once": str(run["draft_tokens"]),
            "greedy acceptance on these texts": percent(run["greedy_acceptance"]),
            "prompts, same texts": f"{run['prompts']}, {run['same_texts']}",
            "passes of the original without a draft": run["tokens"],
            "passes with it": run["passes"],
            "passes that follow from the draft's agreement": run["replayed_passes"],
            "tokens per pass": f"{run['tokens'] / run['passes']:.3f}",
            "tokens per pass by the formula": f"{tokens_per_pass(*forecast.values()):.3f}",
            "speed-up": f"{run['seconds']['plain'] / run['seconds']['assisted']:.2f}",
            "speed-up by the formula": f"{speed_up(**forecast, **costs):.2f}",
            "speed-up by the formula, verification as timed": f"{speed_up(**forecast, **verified):.2f}",
        }
        lines.append(line)
    return pd.DataFrame(lines)


def speculation_figure(metrics: dict) -> Figure:
    """Acceptance against the layers that are cut, with the cost ratio, and what the drafts gain by their length.

    The curves are of the smallest block size that is fine-tuned, by greedy acceptance and the measured cost ratio.

    Args:
        metrics: of the record of 07.
    """
    drawn, axes = figure(3, width=WIDEST, height=4.2)
    ratios = cost_ratios(metrics)
    for axis, measure in zip(axes, MEASURES, strict=False):
        _draw_acceptance(axis, pooled_acceptance(metrics, measure=measure), ratios)
        axis.set(title=_NAMES[measure], ylim=(0, 1.03))
    axes[0].set_ylabel("share of tokens, share of time")
    axes[1].sharey(axes[0])
    axes[1].tick_params(labelleft=False)
    greedy = pooled_acceptance(metrics, measure=MEASURES[0])
    n = min((row["block_size"] for row in greedy if row["arm"] != "no_ft"), default=min(ratios))
    _draw_speed_ups(axes[2], [row for row in greedy if row["block_size"] == n], ratios[n]["measured"])
    axes[2].set(title=f"expected speed-up, n = {n}")
    legend = {}
    for axis in axes:
        legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    drawn.suptitle("Pruned models as drafts: a draft pays where its acceptance is above its cost ratio")
    drawn.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4)
    return drawn


def _draw_acceptance(axis: Axes, rows: list[dict], ratios: dict[int, dict[str, float]]) -> None:
    """A line per arm with 95 % intervals, arms of one block size side by side, and the cost ratio that is to beat."""
    arms = [arm for arm in NAMES if any(row["arm"] == arm for row in rows)]
    for place, arm in enumerate(arms):
        shift = 0.15 * (place - (len(arms) - 1) / 2)
        own = [(row["block_size"] + shift, row["acceptance"], row["interval"]) for row in rows if row["arm"] == arm]
        look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": LINES[arm], "label": NAMES[arm]}
        with_intervals(axis, own, **look)
    sizes = sorted(ratios)
    for kind, name, marker in (("measured", "cost ratio, timed", "x"), ("parameters", "cost ratio, by weights", "")):
        line = "--" if marker else ":"
        values = [ratios[n][kind] for n in sizes]
        axis.plot(sizes, values, color="black", ls=line, lw=1.2, marker=marker, label=name, zorder=1)
    axis.set(xlabel="layers cut, n", xticks=sizes)


def _draw_speed_ups(axis: Axes, rows: list[dict], cost_ratio: float) -> None:
    """A line per arm, its optimum as a star, and the lines of no gain and of a draft that is never wrong."""
    lengths = np.arange(LONGEST + 1)
    for row in rows:
        arm, a = row["arm"], row["acceptance"]
        gains = [speed_up(a, draft_tokens=int(g), cost_ratio=cost_ratio) for g in lengths]
        look = {"color": COLOURS[arm], "ls": LINES[arm], "marker": MARKERS[arm], "markevery": 4, "label": NAMES[arm]}
        axis.plot(lengths, gains, **look)
        best = {"color": COLOURS[arm], "marker": "*", "ms": 14, "mec": "black", "ls": "", "label": "best length"}
        axis.plot(*best_draft(a, cost_ratio=cost_ratio), zorder=4, clip_on=False, **best)
    bound = [speed_up(1.0, draft_tokens=int(g), cost_ratio=cost_ratio) for g in lengths]
    axis.plot(lengths, bound, color="black", ls="-.", lw=1.2, marker="", label="every token accepted")
    axis.axhline(1, color="black", lw=0.8)
    axis.set(xlabel="drafted tokens per pass", ylabel="times as fast", ylim=(0, None))
    axis.xaxis.set_major_locator(ticker.MultipleLocator(4))
