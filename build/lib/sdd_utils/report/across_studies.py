"""What several studies say together, from their committed results; `make readme` writes it into results/.

A table of models of other architectures, what a cut lost and what was healed: `models.md` and `models.csv`. A figure of
when Self-Data FT pays, a point per model, data set and setting: `acceptance.png`.
"""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sdd_utils import ROOT
from sdd_utils.analysis import forgetting, model_grid
from sdd_utils.analysis.acceptance import SETTINGS, acceptance_points
from sdd_utils.analysis.statistics import BITS
from sdd_utils.base.number_format import percent
from sdd_utils.base.records import of_step, read_record, records_by_file
from sdd_utils.report import figures
from sdd_utils.report.figures import MARKERS, NAMES
from sdd_utils.report.job_tables import kept_by_attempt
from sdd_utils.report.tables import healed_cell, write_table
from sdd_utils.study.paths import committed_results

STUDIES = ("embedded", "gemma3-270m", "qwen2.5-coder-0.5b")  # the same core on other models, see studies/
ACCEPTANCE = (*STUDIES, "laptop", "laptop-healing", "laptop-smollm2")
HEALED = "healed_out_of_domain"


def models_table() -> pd.DataFrame:
    """The lines of every study of `STUDIES` that has committed results."""
    lines = []
    for study in STUDIES:
        lines += study_lines(*_committed(study)) if _is_committed(study) else []
    return pd.DataFrame(lines)


def _is_committed(study: str) -> bool:
    return (committed_results(study) / "records" / "results.json").is_file()


def _committed(study: str) -> tuple[list[dict], dict[str, list]]:
    """The records of a study's committed results, and the tasks of each data set's own domain."""
    folder = committed_results(study) / "records"
    params = read_record(folder / "results.json")["params"]
    return [*records_by_file(folder, names=params["record_names"]).values()], params["in_domain"]


def study_lines(records: list[dict], in_domain: dict[str, list]) -> list[dict]:
    """A line per block size and data set, as text; every measure is of tasks out of the data set's domain."""
    original, rows = model_grid.original_scores(records), model_grid.model_grid(records)
    models = model_grid.rows_by_model(forgetting.with_domains(rows, original, in_domain))
    pruned = {record["params"]["block_size"]: record for record in of_step(records, "pruning")}
    layers = pruned[0]["metrics"]["accounting"]["layers"]
    lines = []
    for arm, n, data_set in models:
        if arm != "sft":
            continue
        tuned = {arm: models[arm, n, data_set] for arm in ("sft", "self_data_ft")}
        cut = pruned[n]["metrics"]["accounting"]["cut_parameters"]
        line = {"model": _short(pruned[n]["params"]["model"]), "layers cut": f"{n} of {layers}"}
        line |= {"parameters cut": percent(cut), "fine-tuned on": data_set, "seeds": str(tuned["sft"]["seeds"])}
        line["bits per byte: original, No FT"] = _loss(tuned["sft"], original, pruned[n]["metrics"]["scores"])
        line |= {f"healed by {NAMES[arm]}": healed_cell(row[HEALED]) for arm, row in tuned.items()}
        lines.append(line | {"rewrites kept after each attempt": _kept(records, data_set)})
    minutes = sum(record["provenance"]["wall_s"] for record in records if record["step"] != "results") / 60
    return [line | {"minutes of all jobs": f"{minutes:.0f}"} for line in lines]


def _short(model: str) -> str:
    """A model's name without owner, revision and file, such as `Qwen2.5-Coder-0.5B-Instruct-GGUF`."""
    return model.partition(":")[0].partition("@")[0].rpartition("/")[2]


def _loss(row: dict, original: dict[str, dict], pruned: dict[str, dict]) -> str:
    """Bits per byte of the original and of the pruned model, means over tasks."""
    if not row[HEALED]:
        return "-"
    before, after = (
        np.mean([scores[task][BITS]["value"] for task in row[HEALED]["tasks"]]) for scores in (original, pruned)
    )
    return f"{before:.3f}, {after:.3f}"


def _kept(records: list[dict], data_set: str) -> str:
    (made,) = (record for record in of_step(records, "distillation") if record["params"]["data_set"] == data_set)
    return kept_by_attempt(made["metrics"]["sets"]["distilled"])


def all_acceptance_points() -> list[dict]:
    """The points of every study of `ACCEPTANCE` that has committed results, with the `model` and the `study`."""
    points = []
    for study in filter(_is_committed, ACCEPTANCE):
        records, in_domain = _committed(study)
        model = _short(of_step(records, "pruning")[0]["params"]["model"])
        points += [point | {"model": model, "study": study} for point in acceptance_points(records, in_domain)]
    return points


def acceptance_figure(points: list[dict]) -> Figure:
    """The lead over SFT against the share of own words, a colour per model, a marker per setting, with intervals.

    Args:
        points: of `all_acceptance_points`, at least one.
    """
    drawn, (axis,) = figures.figure(width=figures.WIDEST, height=4.6)
    models, colours = list(dict.fromkeys(point["model"] for point in points)), cycle(figures.CYCLE)
    for model, colour in zip(models, colours, strict=False):
        for arm in SETTINGS:
            own = [point for point in points if (point["model"], point["arm"]) == (model, arm)]
            places = [(100 * point["own_words"], *_of_hundred(point)) for point in own]
            look = {"color": colour, "marker": MARKERS[arm], "ls": "", "label": f"{model}, {_SETTING_NAMES[arm]}"}
            if own:
                figures.with_intervals(axis, places, **look)
            for point, (where, lead, _) in zip(own, places, strict=True):
                name = f"{point['study']}: {point['data_set']}, n = {point['block_size']}"
                axis.annotate(name, (where, lead), (5, 4), textcoords="offset points", size=8, color="0.25")
    axis.axhline(0, color="black", lw=0.8, ls=":")
    axis.set(xlabel="rows that are the teacher's own words (%)", ylabel="lead over SFT (% of the loss)")
    axis.set_title("When does Self-Data FT pay? Healed share out of the domain, minus SFT's")
    axis.legend(**figures.BELOW, ncols=2)
    return drawn


_SETTING_NAMES = {
    "self_data_ft": "all attempts",
    "first_attempt_ft": "first attempt only",
    "kept_rows_ft": "kept rows alone",
}


def _of_hundred(point: dict) -> tuple[float, list[float]]:
    return 100 * point["lead"], [100 * end for end in point["interval"]]


def write_across_studies() -> None:
    """Write table and figure beside the committed results."""
    write_table(models_table(), ROOT / "results", "models")
    figures.save(acceptance_figure(all_acceptance_points()), ROOT / "results", "acceptance")
