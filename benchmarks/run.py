"""Every stage against its peers and its limit: `make bench`, or `python -m benchmarks.run similarity merging`.

Writes `results.json` and the tables `results.md` and `ablation.md` beside this file, and fills those of
`docs/performance.md`. Entries of stages, models and processors that are not run stay.
"""

import argparse
import importlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
from transformers.utils import logging

from benchmarks import ablation, compare, study
from sdd_utils.base.provenance import cpu_name
from sdd_utils.models import architecture, store
from sdd_utils.sweep import readme

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
STAGES = ("similarity", "reading", "joint_decoding", "distillation", "distillation_engines")
STAGES += ("finetuning", "finetuning_bfloat16", "multiple_choice", "generation_tasks", "merging", "ablation")
ON_DEMAND = ("study",)
LARGE_MODEL = 0.3e9  # parameters from which on a model has `LARGE` sizes


def measure(stage: ModuleType, model: str) -> list[dict]:
    """The entries of a stage, after both sides did a small piece of the work once."""
    with tempfile.TemporaryDirectory() as scratch, compare.computing_in(stage):
        state = stage.prepare(model, scratch=Path(scratch), **stage.SMALL)
        for side in (stage.ours, *(peer for peer, _ in stage.PEERS.values())):
            side(state)
    return compare.compare(stage, size=size_of(stage, model), model=model)


def size_of(stage: ModuleType, model: str) -> dict:
    """What of a stage is measured with a model."""
    large = architecture.account(store.load_config(model)).parameters >= LARGE_MODEL
    return stage.FULL | (getattr(stage, "LARGE", {}) if large else {})


def runs(names: list[str], models: list[str]) -> list[tuple]:
    """(stage, model) in their order; what makes its own model is run with the first one only."""
    found = []
    for model in models:
        for name in names:
            stages = ablation.STAGES if name == "ablation" else [importlib.import_module(f"benchmarks.{name}")]
            found += [(stage, model) for stage in stages if model == models[0] or not hasattr(stage, "OWN_MODEL")]
    return found


def former() -> list[dict]:
    """The entries of `results.json`."""
    path = HERE / "results.json"
    return json.loads(path.read_text()) if path.is_file() else []


def write(entries: list[dict]) -> None:
    """Put entries in the place of those of the same stages, model and processor, in `results.json` and the tables."""
    replaced, before = set(map(_key, entries)), former()
    stages = [*dict.fromkeys(entry["stage"] for entry in before + entries)]
    found = [entry for entry in before if _key(entry) not in replaced] + entries
    found.sort(key=lambda entry: stages.index(entry["stage"]))
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, text in tables(found).items():
        (HERE / name).write_text(text)


def _key(entry: dict) -> tuple:
    return entry["stage"], entry["model"], entry["processor"]


def tables(entries: list[dict]) -> dict[str, str]:
    """By file name: the stages beside their peers, and with parts of ours switched off."""
    parts = [entry["stage"].startswith(ablation.PREFIX) for entry in entries]
    return {
        name: as_text([entry for entry, part in zip(entries, parts, strict=True) if part == wanted])
        for name, wanted in (("results.md", False), ("ablation.md", True))
    }


def as_text(entries: list[dict]) -> str:
    return as_markdown(table(entries))


def as_markdown(shown: pd.DataFrame) -> str:
    return shown.to_markdown(index=False, disable_numparse=True) + "\n"


def keep(entries: list[dict], path: Path, *, key: tuple[str, ...], table: Callable[[list[dict]], pd.DataFrame]) -> None:
    """Put entries in the place of those of the same key in a JSON file, write its table beside it, fill the page."""
    before = json.loads(path.read_text()) if path.is_file() else []
    found = [*{tuple(entry[name] for name in key): entry for entry in [*before, *entries]}.values()]
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(table(found)))
    PAGE.write_text(readme.fill_page(PAGE.read_text()))


def table(entries: list[dict]) -> pd.DataFrame:
    """The entries as text; a ratio above 1 says that ours is faster, or needs less memory. Columns of "-" go."""
    words = {True: "yes", False: "NO", None: "-"}
    found = pd.DataFrame(
        {
            "stage": entry["stage"].removeprefix(ablation.PREFIX),
            "model": entry["model"],
            "peer": entry["peer"],
            "peer's time / ours": f"{entry['ratio_time']:.2f}",
            "turns, smallest to largest": f"{entry['n']}, {entry['spread'][0]:.2f} to {entry['spread'][1]:.2f}",
            "share of the limit": _or_dash(entry["roofline_share"], "{:.0%}"),
            "peer's memory / ours": _or_dash(entry["ratio_memory"], "{:.2f}"),
            "our peak, GB": _or_dash(entry["peak"] and entry["peak"] / 1e9, "{:.1f}"),
            "same answer": words[entry["equal"]],
            "processor": entry["processor"],
            "work": entry["note"],
        }
        for entry in entries
    )
    return found.loc[:, (found != "-").any()]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main(names: list[str], models: list[str]) -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    if unknown := set(names) - {*STAGES, *ON_DEMAND}:
        raise SystemExit(f"stage {min(unknown)!r} is unknown: use some of {', '.join([*STAGES, *ON_DEMAND])}")
    for model in models:
        store.find_model(model)  # a wrong name is told before any work
    for stage, model in runs(names or [*STAGES], models):
        if why := getattr(stage, "missing", lambda: None)():
            print(f"{stage.NAME} is left out: {why}")
            continue
        start = time.perf_counter()
        measured = study.entries() if stage is study else measure(stage, model)
        entries = [entry | {"processor": cpu_name()} for entry in measured]
        write(entries)
        print(f"{as_text(entries)}{time.perf_counter() - start:.0f} s", flush=True)
    PAGE.write_text(readme.fill_page(PAGE.read_text()))
    differing = [e for e in former() if e["equal"] is False]
    if differing:
        raise SystemExit(f"answers differ in {', '.join(entry['stage'] for entry in differing)}: see results.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join([*STAGES, *ON_DEMAND])}; by default the first")
    parser.add_argument("--models", nargs="+", default=[compare.MODEL], help="as the study key `model` names them")
    arguments = parser.parse_args()
    main(arguments.stages, arguments.models)
