"""Every stage on one card: its speed, its share of the card's rate, its peak of memory, and whether it is right.

    tests/gpu/check.sh                                # on a machine with a card, see README.md
    tests/gpu/check.sh --cpu FOLDER                   # without one, on a tiny random model

Writes results/gpu/<card>.json. A stage that fails does not keep the others from running; then, or where two ways that
must agree do not, the exit status is 1.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from gpu import generating, measure, scoring, sources, training
from tabulate import tabulate
from transformers.utils import logging

from sdd_utils import ROOT
from sdd_utils.base import provenance
from sdd_utils.base.files import write_json
from sdd_utils.models import architecture, store
from sdd_utils.steps import pruning

SCHEMA = 1
RESULTS = ROOT / "results" / "gpu"
MODEL = "smollm2-135m-instruct"
FULL = {
    "turns": 3,
    "matrix": 8192,
    "block": 6,
    "rows": 256,
    "new_tokens": 128,
    "batch": 128,
    "exact_rows": 8,
    "exact_tokens": 48,
    "slots": {"slots": 128, "context": 384, "steps": 16},
    "slot_rows": (5, 33, 100, 257),
    "train_rows": 192,
    "exact_train_rows": 48,
    "train_batch": 8,
    "documents": 128,
    "shots": 25,
    "evaluation_batch": 16,
    "exact_documents": 8,
    "exact_texts": 3,
    "answers": 64,
}
TINY = FULL | {
    "turns": 1,
    "matrix": 256,
    "block": 4,
    "rows": 6,
    "new_tokens": 5,
    "batch": 4,
    "exact_rows": 4,
    "exact_tokens": 8,
    "slots": {"slots": 3, "context": 12, "steps": 2},
    "slot_rows": (3, 9, 20),
    "train_rows": 12,
    "exact_train_rows": 6,
    "train_batch": 2,
    "documents": 6,
    "shots": 2,
    "evaluation_batch": 4,
    "exact_documents": 4,
    "exact_texts": 1,
    "answers": 4,
}
STAGES = {
    "decoding": generating.decode,
    "KV slots": generating.slots,
    "evaluation": scoring.evaluate,
    "fidelity": scoring.compare,
    "training": training.packed_and_padded,
    "training, FSDP": training.fsdp,
}


def check(model: str, out: Path, *, size: dict) -> dict:
    """Run all stages and write `out` after each, so that what was measured stays; the record."""
    record = begun(size)
    with tempfile.TemporaryDirectory() as scratch:
        pruned = prune(model, Path(scratch) / "pruned", block=size["block"])
        setup = measure.Setup(
            model=model, pruned=pruned, scratch=Path(scratch), rate=record["matrix_rate_flops"], size=size
        )
        for name, stage in STAGES.items():
            record["stages"] += run_stage(name, stage, setup)
            write_json(out, finished(record))
    return record


def run_stage(name: str, stage: Callable, setup: measure.Setup) -> list[dict]:
    """The entries of a stage with its peak of memory; one with the error, if it fails."""
    measure.say(f"{name} …")
    measure.forget_peak()
    start = time.perf_counter()
    try:
        entries = stage(setup)
    except Exception as error:  # one stage must not cost the others, nor the time on a card
        traceback.print_exc()
        entries = [{"stage": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}]
    taken = {"peak_mb": measure.peak_mb(), "stage_s": round(time.perf_counter() - start, 1)}
    return [taken | made for made in entries]


def begun(size: dict) -> dict:
    """What is known before the first stage."""
    return {
        "schema": SCHEMA,
        "card": card(),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "matrix_rate_flops": float(f"{measure.matrix_rate(size['matrix']):.4g}"),
        "size": {key: list(value) if isinstance(value, tuple) else value for key, value in size.items()},
        "stages": [],
    }


def finished(record: dict) -> dict:
    """The record with its verdict and how it was made, as it stands."""
    record["all_equal"] = not failures(record)
    made = provenance.process_provenance(seed=0) | {"dtype": "bfloat16; equalities in float32 unless they say so"}
    record["provenance"] = made | {key: value for key, value in sources.state().items() if key != "digest"}
    return record


def card() -> str:
    return torch.cuda.get_device_name() if measure.on_card() else provenance.cpu_name()


def driver() -> str | None:
    """The version of the card's driver, if its tool is there to say it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def prune(model: str, folder: Path, *, block: int) -> Path:
    """The model without a block in its middle, saved and read back as a study does it."""
    loaded, tokenizer = store.load_model(model, dtype=torch.bfloat16)
    start = (architecture.account_of(loaded).layers - block) // 2
    pruning.remove_block(loaded, start=start, block_size=block)
    return store.save_model(loaded, tokenizer, folder=folder, parent=model, recipe={"start": start, "n": block})


def failures(record: dict) -> list[str]:
    """Errors, and what must agree and does not."""
    errors = [f"{made['stage']}: {made['error']}" for made in record["stages"] if "error" in made]
    pairs = [(made["stage"], one) for made in record["stages"] for one in made.get("equalities", [])]
    return errors + [
        f"{stage}: {one['name']} differ by {one['difference']} {one['unit']}, {one['allowed']} is allowed"
        for stage, one in pairs
        if not one["equal"]
    ]


def table(record: dict) -> str:
    """The record for people."""
    rows = [
        {
            "stage": made["stage"],
            "tokens/s": f"{made['tokens_per_s']:,.0f}",
            "share of the rate": f"{made['share_of_rate']:.2%}",
            "peak MB": made["peak_mb"],
            "equal": " ".join("yes" if one["equal"] else "NO" for one in made["equalities"]) or "-",
            "not served": ", ".join(way for way, serves in made.get("served", {}).items() if not serves) or "-",
        }
        for made in record["stages"]
        if "error" not in made
    ]
    head = f"{record['card']}: {record['matrix_rate_flops'] / 1e12:.4g} TFLOP/s in bfloat16"
    return "\n".join([head, tabulate(rows, headers="keys", tablefmt="github"), *failures(record)])


def main(arguments: list[str]) -> int:
    """Exit status 0 if all ran and all is equal, 1 if not, 2 where there is nothing to run it on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", type=Path, metavar="FOLDER", help="a tiny random model, its record into this folder")
    asked = parser.parse_args(arguments)
    if asked.cpu and asked.cpu.resolve().is_relative_to(RESULTS.parent):
        parser.error(f"--cpu {asked.cpu} lies in results, which are a card's: name a folder elsewhere")
    if bool(asked.cpu) == measure.on_card():
        seen = "a card is visible: set CUDA_VISIBLE_DEVICES= to hide it" if asked.cpu else "torch sees no card: use one"
        parser.error(f"{seen}, or see tests/gpu/README.md")
    name = re.sub(r"[^a-z0-9]+", "-", card().lower()).strip("-")
    if asked.cpu:
        import tiny_models

        model, size = str(tiny_models.write("llama", asked.cpu.resolve() / "model")), TINY
    else:
        model, size = MODEL, FULL
    record = check(model, (asked.cpu or RESULTS) / f"{name}.json", size=size)
    print(table(record))
    return int(bool(failures(record)))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    raise SystemExit(main(sys.argv[1:]))
