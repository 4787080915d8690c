"""Where the time of a stage goes: `python -m benchmarks.breakdown` writes `breakdown.json` and `breakdown.md`.

torch's profiler counts the time in each operator, without that of the operators it calls. Operators are then taken
together as products of linear maps, attention and everything else. MODELS as in `make bench`.
"""

import argparse
import importlib
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
from torch.profiler import ProfilerActivity, profile

from benchmarks import compare, run
from sdd_utils.base import precision
from sdd_utils.base.provenance import cpu_name

OUT = Path(__file__).with_suffix(".json")
STAGES = ("reading", "joint_decoding", "finetuning_bfloat16")
PRODUCTS, ATTENTION, OTHER = "linear maps", "attention", "other"
# Parts of operators' names. `bmm` is attention's: no linear map of a decoder multiplies batches.
OPERATORS = {
    ATTENTION: ("scaled_dot_product", "bmm", "aten::_softmax"),
    PRODUCTS: ("linear", "addmm", "aten::mm", "mkldnn_matmul"),
}
LARGEST = 3  # operators of `OTHER` that are named


def part_of(operator: str) -> str:
    """Which of the three an operator belongs to."""
    return next((part for part, names in OPERATORS.items() if any(name in operator for name in names)), OTHER)


def parts(seconds: dict[str, float]) -> dict:
    """Shares of the whole time by part, and of the largest operators of `OTHER`.

    Args:
        seconds: time in each operator, in any unit.
    """
    shares, other = Counter({PRODUCTS: 0.0, ATTENTION: 0.0, OTHER: 0.0}), Counter()
    for operator, spent in seconds.items():
        shares[part_of(operator)] += spent / sum(seconds.values())
        if part_of(operator) == OTHER:
            other[operator] += spent / sum(seconds.values())
    largest = {operator: round(share, 3) for operator, share in other.most_common(LARGEST)}
    return {"parts": {part: round(share, 3) for part, share in shares.items()}, "largest_other": largest}


def measure(name: str, model: str, *, size: dict | None = None) -> dict:
    """{stage, model, dtype, parts, largest_other} of our side of a stage, after a turn that warms up."""
    stage = importlib.import_module(f"benchmarks.{name}")
    with tempfile.TemporaryDirectory() as scratch, compare.computing_in(stage):
        state = stage.prepare(model, scratch=Path(scratch), **(size or run.size_of(stage, model)))
        stage.ours(state)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            stage.ours(state)
        made = {"stage": stage.NAME, "model": compare.model_name(model), "dtype": precision.dtype_name()}
    seconds = {entry.key: entry.self_cpu_time_total for entry in profiled.key_averages()}
    return made | parts(seconds)


def table(entries: list[dict]) -> pd.DataFrame:
    """A row per stage, model and processor."""
    return pd.DataFrame(
        {
            "stage": entry["stage"],
            "model": entry["model"],
            "precision": entry["dtype"],
            **{part: f"{share:.0%}" for part, share in entry["parts"].items()},
            "largest of the other": ", ".join(
                f"{name.removeprefix('aten::')} {share:.0%}" for name, share in entry["largest_other"].items()
            ),
            "processor": entry["processor"],
        }
        for entry in entries
    )


def main(models: list[str]) -> None:
    """Measure, put the entries in the place of those of the same stage, model and processor, and fill the page."""
    for name, model in [(name, model) for model in models for name in STAGES]:
        entry = measure(name, model) | {"processor": cpu_name()}
        run.keep([entry], OUT, key=("stage", "model", "processor"), table=table)
        print(entry, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[compare.MODEL], help="as the study key `model` names them")
    main(parser.parse_args().models)
