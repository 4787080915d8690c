"""The page of a run or of committed results, `index.html`: one file that needs no other to be read.

It shows what `records`, `tables`, `figures` and `claims.json` beside it hold, and links every number to its record.
"""

import base64
from pathlib import Path

import jinja2

from sdd_utils.analysis import model_grid
from sdd_utils.base.files import write_text
from sdd_utils.base.number_format import amount, percent, percent_interval
from sdd_utils.base.records import device_of, of_step
from sdd_utils.report import job_tables, paper_table, power_views
from sdd_utils.report.figures import NAMES
from sdd_utils.report.topics import StudyReport

FIGURES = {
    "scores": "Each measure, task by task, at the block size whose cut is nearest to the paper's",
    "layer_damage": "What removing layers costs, by how they were chosen, without fine-tuning and after it",
    "scaling": "Recovery against the number of training rows",
    "embedding_similarity": "Cosine of each model's answers to the original's",
    "foreignness": "How far a model moved from the original against how foreign the text was that it learnt",
    "shift": "Average score lost against the mean cosine, a mark per fine-tuned model",
    "speculative_decoding": "Pruned models as drafts: acceptance, cost ratio, and what they gain",
    "quantization": "Original, pruned and healed models in several formats: quality against bytes",
    "power": "Smallest difference that is detected, against documents, a line per number of seeds",
    "distance_curves": "Angular distance of every block of n layers",
    "similarity_map": "Angular distance between the inputs of every two layers",
}
_STEPS = {"recovery": "finetuning", "gain": "finetuning", "embedding": "embedding_similarity"}


def build_page(report: StudyReport, summary: dict) -> Path:
    """Write the page of a study, `index.html`, from its records and the figures in its folder.

    Args:
        summary: the record of 09, whose numbers the page shows.

    Raises:
        FileNotFoundError: the headline figure is not there yet; says what, and the fix.
    """
    folder, named = report.folder, report.named | {"results.json": summary}
    healed, headline = (folder / "figures" / f"{name}.png" for name in ("healed_share", "recovery"))
    if not headline.is_file():
        raise FileNotFoundError(f"{folder.name}/figures/recovery.png does not exist yet: run 'make reproduce'")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html")
    html = template.render(
        amount=amount,
        percent=percent,
        percent_interval=percent_interval,
        study=summary["study"],
        facts=_facts(named),
        healed=_embedded(healed) if healed.is_file() else "",
        headline=_embedded(headline),
        recovery=_recovery_rows(report, summary["metrics"]),
        arms=[NAMES[arm] for arm in _arms(summary["metrics"]["grid"])],
        compared=_compared(report),
        claims=[claim | _drawn(claim) for claim in report.claims],
        power=power_views.power_table(summary["metrics"]["power"]).to_dict("records"),
        answers=job_tables.answers_table(report.records).to_dict("records"),
        figures={name: (caption, _embedded(path)) for name, caption, path in _figures(folder)},
        records={step: _of_step(named, step) for step in dict.fromkeys(r["step"] for r in named.values())},
        notebooks={path.stem for path in (folder / "notebooks").glob("*.ipynb")},
    )
    page = folder / "index.html"
    write_text(page, html)
    return page


def _figures(folder: Path):
    paths = ((name, caption, folder / "figures" / f"{name}.png") for name, caption in FIGURES.items())
    return [figure for figure in paths if figure[2].is_file()]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _of_step(records: dict[str, dict], step: str) -> list[str]:
    return [name for name, record in records.items() if record["step"] == step]


def _facts(records: dict[str, dict]) -> dict:
    """What the study ran on: its model, seeds, commits, devices and the time of all jobs."""
    provenances = [record["provenance"] for record in records.values()]
    return {
        "model": next(record["params"]["model"] for record in of_step(records.values(), "pruning")),
        "seeds": sorted({record["params"]["seed"] for record in of_step(records.values(), "finetuning")}),
        "commits": sorted({provenance["commit"][:8] for provenance in provenances}),
        "dirty": any(provenance["dirty"] for provenance in provenances),
        "devices": sorted({device_of(provenance) for provenance in provenances}),
        "hours": sum(provenance["wall_s"] for provenance in provenances) / 3600,
    }


def _arms(grid: list[dict]) -> list[str]:
    shown = {row["arm"] for row in grid} - {"original", "merged"}
    return [arm for arm in NAMES if arm in shown]


def _recovery_rows(report: StudyReport, metrics: dict) -> list[dict]:
    """The recovery table's rows: each number with its interval and the files that it comes from."""
    by_model = model_grid.rows_by_model(metrics["grid"])
    rows = []
    for entry in metrics["differences"]:
        n, data_set = entry["block_size"], entry["data_set"]
        tuned = _main_files(report, block_size=n, data_set=data_set)
        cells = []
        for arm in _arms(metrics["grid"]):
            row = by_model.get((arm, n, "" if arm == "no_ft" else data_set))
            files = _files(report.named, "pruning", block_size=n) if arm == "no_ft" else tuned
            cells.append(row and row | {"files": files})
        rows.append({"n": n, "data_set": data_set, "cells": cells, "difference": entry, "files": tuned})
    return rows


def _files(records: dict[str, dict], step: str, **params) -> list[str]:
    """The files of one step whose parameters are these."""
    return [name for name in _of_step(records, step) if params.items() <= records[name]["params"].items()]


def _main_files(report: StudyReport, **params) -> list[str]:
    """The files of the main comparison's fine-tunings with these parameters."""
    main = model_grid.main_finetunings(report.records)
    return [name for name in _files(report.named, "finetuning", **params) if report.named[name] in main]


def _compared(report: StudyReport) -> list[dict]:
    """Rows of the paper-vs-ours table with the files that our number comes from."""
    n, rows = model_grid.nearest_cut(report.records), []
    for row in paper_table.comparison_rows(report.records, report.rows):
        step = _STEPS.get(row["key"].split("_")[0], "pruning")
        at_cut = row["key"].startswith(("recovery", "layers", "parameters", "cut"))
        only = {"block_size": n} if at_cut else {}
        files = _main_files(report, **only) if step == "finetuning" else _files(report.named, step, **only)
        if step == "embedding_similarity":
            nearest = paper_table.nearest_similarities(report.records)
            files = [name for name in files if report.named[name] in nearest]
        rows.append(row | {"files": files})
    return rows


def _drawn(claim: dict) -> dict:
    """A claim's numbers as text, and where they lie, in per cent of a line from the lowest to the highest."""
    numbers = {"numbers": None, "line": None, "mark": {"holds": "✓", "does not hold": "✗"}.get(claim["verdict"], "?")}
    if claim["interval"] is None:
        return numbers
    size = next((part["side"] * part["size"] for part in claim["parts"] if part["size"]), None)
    marks = {"zero": 0.0, "estimate": claim["estimate"], "low": claim["interval"][0], "high": claim["interval"][1]}
    marks |= {"size": size} if size is not None else {}
    low, width = min(marks.values()), (max(marks.values()) - min(marks.values())) or 1.0
    numbers["line"] = {name: round(4 + 92 * (value - low) / width, 1) for name, value in marks.items()}
    amounts = {name: amount(value, claim["unit"]) for name, value in marks.items()}
    return numbers | {"numbers": amounts | {"detectable": amount(claim["detectable"], claim["unit"])[1:]}}
