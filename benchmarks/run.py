"""Every stage against its peers and its limit: `make bench`, or `python -m benchmarks.run similarity merging`.

Writes `results.json` and `results.md` beside this file and fills the table of `docs/performance.md`; entries of stages
that are not run, and of other processors, stay.
"""

import importlib
import importlib.util
import json
import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
from transformers.utils import logging

from benchmarks import compare, study
from sdd_utils.base.provenance import cpu_name
from sdd_utils.sweep import readme

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
STAGES = ("similarity", "distillation", "distillation_engines", "finetuning", "multiple_choice", "generation_tasks")
STAGES += ("merging", "study")


def measure(name: str) -> list[dict]:
    """The entries of a stage, after both sides did a small piece of the work once."""
    stage = importlib.import_module(f"benchmarks.{name}")
    with tempfile.TemporaryDirectory() as scratch, compare.precision(stage):
        state = stage.prepare(compare.MODEL, scratch=Path(scratch), **stage.SMALL)
        for side in (stage.ours, *(peer for peer, _ in stage.PEERS.values())):
            side(state)
    return compare.compare(stage, size=stage.FULL)


def former() -> list[dict]:
    """The entries of `results.json`."""
    path = HERE / "results.json"
    return json.loads(path.read_text()) if path.is_file() else []


def missing(name: str, *, first: dict | None) -> str | None:
    """Why a stage cannot be run, with the mend; `first`: the entry that holds the time of the study's first state."""
    if name == "merging" and importlib.util.find_spec("mergekit") is None:
        return 'mergekit is not installed, run pip install -e ".[bench]"'
    if name == "study" and not first and not study.first_is_here():
        return "it needs the commit of its first records, run git fetch --unshallow"
    return None


def write(entries: list[dict]) -> None:
    """Put entries in the place of those of the same stages and processor, in `results.json` and the table."""
    replaced, before = {(entry["stage"], entry["processor"]) for entry in entries}, former()
    stages = [*dict.fromkeys(entry["stage"] for entry in before + entries)]
    found = [e for e in before if (e["stage"], e["processor"]) not in replaced] + entries
    found.sort(key=lambda entry: stages.index(entry["stage"]))
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "results.md").write_text(table(found).to_markdown(index=False, disable_numparse=True) + "\n")


def table(entries: list[dict]) -> pd.DataFrame:
    """The entries as text; a ratio above 1 says that ours is faster, or needs less memory."""
    words = {True: "yes", False: "NO", None: "-"}
    return pd.DataFrame(
        {
            "stage": entry["stage"],
            "peer": entry["peer"],
            "peer's time / ours": f"{entry['ratio_time']:.2f}",
            "n, smallest to largest": f"{entry['n']}, {entry['spread'][0]:.2f} to {entry['spread'][1]:.2f}",
            "peer's memory / ours": "-" if entry["ratio_memory"] is None else f"{entry['ratio_memory']:.2f}",
            "same answer": words[entry["equal"]],
            "processor": entry["processor"],
            "work": entry["note"],
        }
        for entry in entries
    )


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    if unknown := set(names) - set(STAGES):
        raise SystemExit(f"stage {min(unknown)!r} is unknown: use some of {', '.join(STAGES)}")
    first = None if names else study.recorded(former())
    for name in names or STAGES:
        if why := missing(name, first=first):
            print(f"{name} is left out: {why}")
            continue
        measured = study.entries(first) if name == "study" else measure(name)
        entries = [entry | {"processor": cpu_name()} for entry in measured]
        write(entries)
        print(table(entries).to_markdown(index=False, disable_numparse=True), flush=True)
    PAGE.write_text(readme.fill_page(PAGE.read_text()))
    differing = [e for e in former() if e["equal"] is False]
    if differing:
        raise SystemExit(f"answers differ in {', '.join(entry['stage'] for entry in differing)}: see results.json")


if __name__ == "__main__":
    main(sys.argv[1:])
