"""What a training step by each loss takes beside cross-entropy: `python -m benchmarks.distillation_steps`.

Writes `distillation_steps.json` and `.md` beside this file.

The embedded study's model without six layers learns the same rows by each loss in turn, forwards and backwards, so that
whatever else the machine does meets all of them. A ratio is that of median steps; first steps, which warm up, do not
count.
"""

import json
import statistics
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks import run, some_rows
from sdd_utils import ROOT
from sdd_utils.base import precision
from sdd_utils.base.files import write_json
from sdd_utils.base.provenance import process_provenance
from sdd_utils.data.arms import CROSS_ENTROPY, FORWARD_KL, REVERSE_KL
from sdd_utils.models import store
from sdd_utils.steps import finetuning, pruning, teacher

OUT = Path(__file__).with_suffix(".json")
MODEL, START, BLOCK_SIZE = "smollm2-135m-instruct", 10, 6
ROWS, TURNS = 24, 4
SETTINGS = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_targets": "all-linear"}
SETTINGS |= {"learning_rate": 5e-4, "epochs": 1, "batch_size": 4, "seed": 0, "trained_tokens": 0}


def steps(model: str, scratch: Path, *, rows: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each step but the first of every training, by loss.

    Args:
        scratch: a folder that holds the pruned checkpoint `pruned`.
    """
    tokenizer = store.load_tokenizer(model)
    data = finetuning.paired_sets(tokenizer, some_rows.load(rows), {}, arms=["sft"], max_length=512)["sft"]
    teacher.write(model, {"original": list(data)}, folder=scratch / "teacher")
    taught = {"original": model, "distributions": scratch / "teacher"}
    seconds: dict[str, list[float]] = {CROSS_ENTROPY: [], FORWARD_KL: [], REVERSE_KL: []}
    for turn in range(turns):
        for loss in list(seconds)[:: -1 if turn % 2 else 1]:
            adapter = scratch / f"{loss}-{turn}"
            finetuning.finetune(scratch / "pruned", data, adapter=adapter, loss=loss, **taught, **SETTINGS)
            seconds[loss] += finetuning.seconds_of(adapter)[1:]
    return seconds


def table(found: dict) -> pd.DataFrame:
    """A row per loss."""
    work = f"{found['rows']} rows, {found['batch_size']} a step, {found['dtype']}, {found['threads']} threads"
    return pd.DataFrame(
        {
            "loss": loss.replace("_", " "),
            "time of a step / that of cross entropy": f"{ratio:.2f}",
            "steps timed": str(found["steps"][loss]),
            "work": work,
            "processor": found["device"],
        }
        for loss, ratio in found["ratio"].items()
    )


def main() -> None:
    """Measure, and write what came out beside this script."""
    with tempfile.TemporaryDirectory(dir=ROOT / "work") as folder:
        scratch = Path(folder)
        model, tokenizer = store.load_model(MODEL)
        pruned = pruning.remove_block(model, start=START, block_size=BLOCK_SIZE)
        store.save_model(pruned, tokenizer, folder=scratch / "pruned", parent=MODEL, recipe={})
        seconds = steps(MODEL, scratch, rows=ROWS, turns=TURNS)
    medians = {loss: statistics.median(own) for loss, own in seconds.items()}
    ratios = {loss: round(median / medians[CROSS_ENTROPY], 3) for loss, median in medians.items()}
    made = {key: value for key, value in process_provenance(seed=0).items() if key in ("commit", "device", "threads")}
    counted = {"rows": ROWS, "batch_size": SETTINGS["batch_size"], "steps": {k: len(v) for k, v in seconds.items()}}
    found = {"median_s": medians, "ratio": ratios, "dtype": precision.dtype_name(), **counted, **made}
    write_json(OUT, found)
    OUT.with_suffix(".md").write_text(run.as_markdown(table(found)))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
