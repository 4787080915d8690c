"""Keep what `make compress` gave for some models: `python -m benchmarks.compressions FOLDER NAME` (by hand).

Copies a folder's papers, without weights, and the models' first answers into `compressed/NAME` beside this file, and
writes one table of all that are kept.
"""

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd
import yaml

from benchmarks.compare import model_name
from benchmarks.run import PAGE, as_markdown
from sdd_utils.analysis.statistics import BITS
from sdd_utils.compress.card import CARD, RECIPE, RESULT
from sdd_utils.compress.chain import ANSWERS, work_folder
from sdd_utils.compress.stages import HELD_OUT
from sdd_utils.sweep import readme

KEPT, ANSWERED = Path(__file__).with_name("compressed"), 3  # where, and of how many questions the answers
HEAD, MINUTE = 2, 60  # lines above the rows of a table; seconds


def keep(folder: Path, name: str) -> None:
    """Copy a folder's papers, and the answers to its first questions."""
    out = KEPT / name
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder / "figures", out / "figures")
    for file in (CARD, RECIPE, RESULT):
        shutil.copy(folder / file, out)
    lines = (work_folder(folder) / ANSWERS).read_text().splitlines(keepends=True)
    (out / ANSWERS).write_text("".join(lines[: HEAD + ANSWERED]))


def table() -> pd.DataFrame:
    """A line per compression that is kept: what was cut, how long it took, and what came back."""
    results = {place.parent: json.loads(place.read_text()) for place in KEPT.glob(f"*/{RESULT}")}
    by_size = sorted(results.items(), key=lambda kept: kept[1]["parameters"]["original"])
    return pd.DataFrame(_line(folder, found) for folder, found in by_size)


def _line(folder: Path, found: dict) -> dict:
    recipe = yaml.safe_load((folder / RECIPE).read_text())
    sizes, healed = found["parameters"], recipe["request"]["arm"]
    bits = {name: scores[HELD_OUT][BITS]["value"] for name, scores in found["scores"].items()}
    similar = {name: found["similarity_of_answers"][name]["mean"] for name in ("no_ft", healed)}
    kept = 1 - found["rewrites"]["distilled"]["fallback_rate"]
    return {
        "model": model_name(recipe["request"]["model"]),
        "CUT": recipe["request"]["cut"],
        "layers cut": found["block"]["block_size"],
        "parameters, million": f"{sizes['original'] / 1e6:.0f} to {sizes['compressed'] / 1e6:.0f}",
        "rows": found["training"]["rows"],
        "rewrites kept": f"{kept:.0%}",
        "bits per byte, held out: original, pruned, healed": ", ".join(
            f"{bits[name]:.3f}" for name in ("original", "no_ft", healed)
        ),
        "similarity of answers: pruned, healed": ", ".join(f"{similar[name]:.2f}" for name in ("no_ft", healed)),
        "minutes": f"{sum(found['seconds'].values()) / MINUTE:.0f}",
        "processor": recipe["made"]["processor"],
    }


def main() -> None:
    """Keep one folder, then write the table and fill the pages that show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `make compress` made")
    parser.add_argument("name", help="what the table calls it")
    arguments = parser.parse_args()
    keep(arguments.folder.resolve(), arguments.name)
    KEPT.with_suffix(".md").write_text(as_markdown(table()))
    page = PAGE.with_name("own-model.md")
    page.write_text(readme.fill_page(page.read_text()))


if __name__ == "__main__":
    main()
