"""Every stage against its peers and its limit: `make bench`, or `python -m benchmarks.run similarity merging study`.

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
from sdd_utils import readme, results

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
STAGES = ("similarity", "distillation", "finetuning", "multiple_choice", "generation_tasks", "merging")


def measure(name: str) -> list[dict]:
    """The entries of a stage, after both sides did a small piece of the work once."""
    if name == "study":
        return study.entries()
    stage = importlib.import_module(f"benchmarks.{name}")
    with tempfile.TemporaryDirectory() as scratch, compare.precision(stage):
        state = stage.prepare(compare.MODEL, scratch=Path(scratch), **stage.SMALL)
        for side in (stage.ours, *(peer for peer, _ in stage.PEERS.values())):
            side(state)
    return compare.compare(stage, size=stage.FULL)


def write(entries: list[dict]) -> None:
    """Put entries in the place of those of the same stages and processor, in `results.json` and the table."""
    path = HERE / "results.json"
    replaced = {(entry["stage"], entry["processor"]) for entry in entries}
    former = json.loads(path.read_text()) if path.is_file() else []
    stages = [*dict.fromkeys(entry["stage"] for entry in former + entries)]
    found = [e for e in former if (e["stage"], e["processor"]) not in replaced] + entries
    found.sort(key=lambda entry: stages.index(entry["stage"]))
    path.write_text(json.dumps(found, indent=1) + "\n")
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
    unknown = set(names) - {*STAGES, "study"}
    if unknown:
        raise SystemExit(f"stage {min(unknown)!r} is unknown: use some of {', '.join((*STAGES, 'study'))}")
    if "study" in names and not study.first_is_here():
        raise SystemExit("stage 'study' needs the commit of its first records: run git fetch --unshallow")
    for name in names or STAGES:
        if name == "merging" and importlib.util.find_spec("mergekit") is None:
            print('merging is left out: mergekit is not installed, run pip install -e ".[bench]"')
            continue
        entries = [entry | {"processor": results.cpu_name()} for entry in measure(name)]
        write(entries)
        print(table(entries).to_markdown(index=False, disable_numparse=True), flush=True)
    PAGE.write_text(readme.fill(PAGE.read_text()))
    differing = [e for e in json.loads((HERE / "results.json").read_text()) if e["equal"] is False]
    if differing:
        raise SystemExit(f"answers differ in {', '.join(entry['stage'] for entry in differing)}: see results.json")


if __name__ == "__main__":
    main(sys.argv[1:])
