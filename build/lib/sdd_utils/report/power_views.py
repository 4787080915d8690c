"""The table and the figure of what a study detects, and of what would detect half of it; see `analysis.power`."""

from math import ceil
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdd_utils.analysis.power import FEWEST_SEEDS, detectable
from sdd_utils.base.number_format import amount, in_unit
from sdd_utils.report.figures import WIDEST, figure

_SEEDS = {3: ("#0072B2", "o", "-"), 5: ("#E69F00", "^", "--"), 10: ("#009E73", "s", ":")}  # colour, marker, line
_ONE_SEED = {1: ("#0072B2", "o", "-")}
_TIMES = 2.0 ** np.arange(-3, 6)  # the measured documents, in the figure


def power_table(entries: list[dict]) -> pd.DataFrame:
    """A line per measured comparison: what it detects with its seeds and documents, and sizes that see half of it.

    Args:
        entries: of `analysis.power.power_entries`.
    """
    return pd.DataFrame(
        {
            "comparison": f"{entry['what']}, {entry['where']}",
            "unit": entry["unit"],
            "seeds": entry["seeds"],
            "documents": entry["documents"],
            "detectable": amount(entry["detectable"], entry["unit"]).lstrip("+"),
            **_half_cells(entry),
        }
        for entry in entries
    )


def _half_cells(entry: dict) -> dict[str, str]:
    half, one_seed = entry["half"], entry["seeds"] < FEWEST_SEEDS
    lacking = "unknown from one seed" if one_seed else "not by seeds alone"
    both = half["both"] and "{} seeds, {:,} documents".format(*half["both"])
    return {
        "half of it: documents": f"{half['documents']:,}" if half["documents"] else "not by documents alone",
        "half of it: seeds": f"{half['seeds']:,}" if half["seeds"] else lacking,
        "half of it: both": both or ("unknown from one seed" if one_seed else "-"),
    }


def power_curves(entries: list[dict]) -> Figure:
    """The detectable difference against documents, a panel per comparison, a line per number of training seeds.

    A star is the study as it was measured. With one measured seed the line is about these trainings alone.

    Args:
        entries: of `analysis.power.power_entries`, at least one.
    """
    rows = ceil(len(entries) / 3)
    columns = ceil(len(entries) / rows)
    same = len({entry["unit"] for entry in entries}) == 1
    size = {"width": 6.4 if columns == 1 else WIDEST, "height": 3.3 * rows + 0.9}
    drawn, axes = figure(columns, rows=rows, sharey=same, **size)
    legend = {}
    for axis, entry in zip(axes, entries, strict=False):
        _draw_lines(axis, entry)
        _plain_log_scales(axis)
        axis.set_title(fill(entry["what"], 32))
        named = not same or axis.get_subplotspec().is_first_col()
        axis.set(xlabel="documents", ylabel=f"detectable difference ({entry['unit']})" if named else "")
        legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for unused in axes[len(entries) :]:
        unused.remove()
    drawn.suptitle("The smallest difference found in four studies of five")
    drawn.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend))
    return drawn


def _draw_lines(axis: Axes, entry: dict) -> None:
    documents = entry["documents"] * _TIMES
    for seeds, (colour, marker, line) in (_SEEDS if entry["seeds"] >= FEWEST_SEEDS else _ONE_SEED).items():
        differences = [in_unit(detectable(entry, seeds=seeds, documents=n), entry["unit"]) for n in documents]
        look = {"color": colour, "marker": marker, "ls": line, "label": f"{seeds} seed{'s' * (seeds > 1)}"}
        axis.plot(documents, differences, **look)
    here = {"ls": "", "marker": "*", "ms": 13, "mfc": "white", "mec": "black", "zorder": 4}
    axis.plot(entry["documents"], in_unit(entry["detectable"], entry["unit"]), label="this study", **here)


def _plain_log_scales(axis: Axes) -> None:
    """Log scales both ways, with plain numbers."""
    axis.set(xscale="log", yscale="log")
    for scale, marks in ((axis.xaxis, (1,)), (axis.yaxis, (1, 2, 5))):
        scale.set_major_locator(ticker.LogLocator(subs=marks))
        scale.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
        scale.set_minor_formatter(ticker.NullFormatter())
