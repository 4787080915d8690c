"""The page of a study, `results/<study>/index.html`: one file that needs no other to be read.

It shows what `records`, `tables`, `figures` and `claims.json` beside it hold, and links every number to its record.
"""

import base64
import json
import sys
from pathlib import Path

import jinja2
import pandas as pd

from sdd_utils import ROOT, grid, paper
from sdd_utils.amounts import amount
from sdd_utils.plots import NAMES
from sdd_utils.results import device_of, of_step, records_by_file

FIGURES = {
    "scaling": "Recovery against the number of training rows",
    "embedding_similarity": "Cosine of each model's answers to the original's",
    "shift": "Average score lost against the mean cosine, a mark per fine-tuned model",
    "distance_curves": "Angular distance of every block of n layers",
    "similarity_map": "Angular distance between the inputs of every two layers",
}
_STEPS = {"recovery": "finetuning", "gain": "finetuning", "embedding": "embedding_similarity"}


def build(folder: Path) -> Path:
    """Write the page of a study from what its folder holds.

    Raises:
        FileNotFoundError: something that the page shows is not there yet; says what, and the mend.
    """
    needed = ("records/results.json", "claims.json", "tables/paper_vs_ours.csv", "figures/recovery.png")
    for name in needed:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder.name}/{name} does not exist yet: run 'make reproduce' for this study")
    records = records_by_file(folder / "records")
    summary = records["results.json"]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html")
    html = template.render(
        amount=amount,
        study=summary["study"],
        facts=_facts(records),
        headline=_embedded(folder / "figures" / "recovery.png"),
        recovery=_recovery_rows(records),
        arms=[NAMES[arm] for arm in _arms(summary["metrics"]["grid"])],
        compared=_compared(pd.read_csv(folder / "tables" / "paper_vs_ours.csv"), records),
        claims=[claim | _drawn(claim) for claim in json.loads((folder / "claims.json").read_text())],
        figures={name: (said, _embedded(path)) for name, said, path in _figures(folder)},
        records={step: _of_step(records, step) for step in dict.fromkeys(r["step"] for r in records.values())},
        pages={path.stem for path in (folder / "html").glob("*.html")},
    )
    page = folder / "index.html"
    page.write_text(html, encoding="utf-8")
    return page


def _figures(folder: Path):
    paths = ((name, said, folder / "figures" / f"{name}.png") for name, said in FIGURES.items())
    return [found for found in paths if found[2].is_file()]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _of_step(records: dict[str, dict], step: str) -> list[str]:
    return [name for name, record in records.items() if record["step"] == step]


def _facts(records: dict[str, dict]) -> dict:
    """What the study ran on: its model, seeds, commits, devices and the time of all jobs."""
    made = [record["provenance"] for record in records.values()]
    return {
        "model": next(record["params"]["model"] for record in of_step(records.values(), "pruning")),
        "seeds": sorted({record["params"]["seed"] for record in of_step(records.values(), "finetuning")}),
        "commits": sorted({one["commit"][:8] for one in made}),
        "dirty": any(one["dirty"] for one in made),
        "devices": sorted({device_of(one) for one in made}),
        "hours": sum(one["wall_s"] for one in made) / 3600,
    }


def _arms(grid: list[dict]) -> list[str]:
    found = {row["arm"] for row in grid} - {"original", "merged"}
    return [arm for arm in NAMES if arm in found]


def _recovery_rows(records: dict[str, dict]) -> list[dict]:
    """The recovery table's rows: each number with its interval and the files that it comes from."""
    metrics = records["results.json"]["metrics"]
    by_key = {(row["arm"], row["block_size"], row["data_set"]): row for row in metrics["grid"]}
    rows = []
    for entry in metrics["differences"]:
        n, data_set = entry["block_size"], entry["data_set"]
        tuned = _main_files(records, block_size=n, data_set=data_set)
        cells = []
        for arm in _arms(metrics["grid"]):
            row = by_key.get((arm, n, "" if arm == "no_ft" else data_set))
            files = _files(records, "pruning", block_size=n) if arm == "no_ft" else tuned
            cells.append(row and row | {"files": files})
        rows.append({"n": n, "data_set": data_set, "cells": cells, "difference": entry, "files": tuned})
    return rows


def _files(records: dict[str, dict], step: str, **params) -> list[str]:
    """The files of one step whose parameters are these."""
    return [name for name in _of_step(records, step) if params.items() <= records[name]["params"].items()]


def _main_files(records: dict[str, dict], **params) -> list[str]:
    """The files of the main comparison's fine-tunings: the study's own LoRA capacity, the largest number of rows."""
    files = [name for name in _files(records, "finetuning", **params) if not records[name]["params"].get("capacity")]
    rows = {name: records[name]["params"]["train_rows"] or float("inf") for name in files}  # 0 is all
    return [name for name in files if rows[name] == max(rows.values())]


def _compared(table: pd.DataFrame, records: dict[str, dict]) -> list[dict]:
    """Rows of the paper-vs-ours table with the files that our number comes from."""
    keys = {published.what: published.key for published in paper.NUMBERS}
    beside = grid.nearest_cut(list(records.values()))
    rows = []
    for row in table.fillna("-").to_dict("records"):
        key = keys.get(row["what"], "")
        step = _STEPS.get(key.split("_")[0], "pruning")
        only = {"block_size": beside} if key.startswith(("recovery", "layers", "parameters", "cut")) else {}
        rows.append(row | {"files": _files(records, step, **only)})
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


def main() -> int:
    """`python -m sdd_utils.page <study>`: build the page and say where it lies."""
    name = Path(sys.argv[1] if len(sys.argv) > 1 else "embedded").stem
    try:
        print(build(ROOT / "results" / name).relative_to(ROOT))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
