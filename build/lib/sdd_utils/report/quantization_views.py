"""The table and the figure of quality against bytes; see `analysis.quantization`."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdd_utils.analysis.quantization import HIGHER_IS_BETTER, front, stored_models
from sdd_utils.report.figures import COLOURS, LINES, MARKERS, NAMES, WIDEST, columns_of, figure
from sdd_utils.report.tables import FAVOURS

_MEGABYTE = 1e6
_AXES = {"kl": "KL to the original (nats per token)", "choice_probability": "choice probability"}
_TITLES = {"kl": "Fidelity: lower is better", "choice_probability": "Choice probability: higher is better"}


def quantization_table(metrics: dict) -> pd.DataFrame:
    """A line per model and format, smallest first.

    Args:
        metrics: of the record of 08.
    """
    rows = stored_models(metrics)
    fronts = {measure: front(rows, measure=measure) for measure in _measures(rows)}
    lines = [
        {
            "n": row["block_size"],
            "model": NAMES[row["arm"]],
            "fine-tuned on": row["data_set"] or "-",
            "format": row["format"],
            "MB": f"{row['bytes'] / _MEGABYTE:.1f}",
            "KL": f"{row['kl']:.3f}",
            "choice probability": _choice(row),
            "decoding, tokens/s": f"{row['decoding']:.0f}",
            "reading, tokens/s": f"{row['reading']:.0f}",
            "on the front by": ", ".join(name.replace("_", " ") for name, kept in fronts.items() if row in kept) or "-",
        }
        for row in rows
    ]
    favours = dict.fromkeys(lines[0], "-") | {"model": FAVOURS, "KL": NAMES["self_data_ft"]}
    return pd.DataFrame([favours, *lines])


def _choice(row: dict) -> str:
    return "-" if row["choice_probability"] is None else f"{row['choice_probability']:.3f} ± {row['stderr']:.3f}"


def _measures(rows: list[dict]) -> list[str]:
    """KL, and choice probability where a task offers choices."""
    return [measure for measure in HIGHER_IS_BETTER if rows[0][measure] is not None]


def quantization_figure(metrics: dict) -> Figure:
    """Quality against megabytes, a line per model through its formats, and the front of what is best at each size.

    Args:
        metrics: of the record of 08.
    """
    rows = stored_models(metrics)
    measures, sets = _measures(rows), sorted({row["data_set"] for row in rows if row["data_set"]})
    drawn, axes = figure(len(measures), width=WIDEST, height=4.4)
    legend = {}
    for axis, measure in zip(axes, measures, strict=True):
        for which in dict.fromkeys((row["arm"], row["block_size"], row["data_set"]) for row in rows):
            own = [row for row in rows if (row["arm"], row["block_size"], row["data_set"]) == which]
            _draw_model(axis, own, measure, sets=sets)
        _draw_front(axis, rows, measure)
        axis.set(xlabel="weights on disk (MB)", ylabel=_AXES[measure], title=_TITLES[measure], xlim=(0, None))
        legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    drawn.suptitle("What each format costs and keeps")
    drawn.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=columns_of(len(legend), width=WIDEST)
    )
    return drawn


def _draw_model(axis: Axes, rows: list[dict], measure: str, *, sets: list[str]) -> None:
    """The formats of one model, each with its name; a choice probability with its 95 % interval.

    Where models learnt one of several data sets, their names say which, and markers of all but the first are hollow.
    """
    arm, reach = rows[0]["arm"], [1.96 * row["stderr"] * (measure != "kl") for row in rows]
    learnt = rows[0]["data_set"]
    label = f"{NAMES[arm]}, {learnt}" if learnt and len(sets) > 1 else NAMES[arm]
    look = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": LINES[arm], "label": label, "elinewidth": 0.8}
    look |= {"mfc": "white"} if learnt in sets[1:] else {}
    axis.errorbar([row["bytes"] / _MEGABYTE for row in rows], [row[measure] for row in rows], reach, **look)
    for row in rows:
        where = row["bytes"] / _MEGABYTE, row[measure]
        axis.annotate(row["format"], where, (4, 4), textcoords="offset points", fontsize=8, color="0.25")


def _draw_front(axis: Axes, rows: list[dict], measure: str) -> None:
    """A step at each model that is better than all smaller ones, up to the largest model."""
    kept = front(rows, measure=measure)
    sizes = [row["bytes"] / _MEGABYTE for row in (*kept, rows[-1])]
    values = [row[measure] for row in (*kept, kept[-1])]
    look = {"color": "0.6", "lw": 5, "alpha": 0.45, "marker": "", "zorder": 0, "label": "best at this size"}
    axis.plot(sizes, values, drawstyle="steps-post", **look)
