"""How time and memory grow with the work: `python -m benchmarks.scaling` writes `scaling.json`, `.png` and `.md`.

Random weights in a model's own shapes, cut to some layers, so that it takes minutes; MODELS as in `make bench`.
Exponents are slopes of log(time) against log(amount), least squares. Memory is what the work adds to a fresh process at
its peak.
"""

import argparse
import functools
import importlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from matplotlib import ticker
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, BatchEncoding

from benchmarks import compare, finetuning, run
from sdd_utils.base import precision
from sdd_utils.engine import decoding
from sdd_utils.models import architecture, store
from sdd_utils.report import figures
from sdd_utils.steps import finetuning as finetuning_step
from sdd_utils.steps import merging, similarity
from sdd_utils.sweep import readme

HERE = Path(__file__).parent
BASE = {"layers": 4, "rows": 16, "tokens": 128, "batch": 8, "block_sizes": 2}
AMOUNTS = {
    "similarity": {
        "rows": [8, 16, 32], "tokens": [64, 128, 256], "layers": [4, 8, 16], "batch": [2, 4, 8],
        "block_sizes": [1, 2, 3],
    },
    "decoding": {
        "rows": [8, 16, 32], "tokens": [64, 128, 256], "layers": [4, 8, 16], "batch": [2, 4, 8],
    },
    "fine-tuning": {
        "rows": [8, 16, 32], "tokens": [64, 128, 256], "layers": [4, 8, 16], "batch": [2, 4, 8],
    },
    "merging": {"layers": [4, 8, 16]},
}  # fmt: skip
LOOKS = {
    "similarity": {"color": "C0", "marker": "o"},
    "decoding": {"color": "C1", "marker": "^"},
    "fine-tuning": {"color": "C3", "marker": "d"},
    "merging": {"color": "C2", "marker": "s"},
}
WORDS = {"rows": "rows", "tokens": "tokens per row", "layers": "layers", "batch": "rows at once"}
WORDS |= {"block_sizes": "block sizes"}
TURNS = 5  # the shortest counts
MEGABYTE = 2**20  # less than this is not told from the allocator's noise
# What warms `peaks` up.
SMALL = BASE | {"stage": "similarity", "layers": 2, "rows": 2, "tokens": 8, "block_sizes": 1}


def prepare(model, *, scratch, stage: str, layers: int, rows: int, tokens: int, batch: int, block_sizes: int) -> dict:
    """A model of so many layers with random weights, and rows of exactly so many tokens."""
    torch.manual_seed(0)
    config = store.load_config(model)
    depth = config.get_text_config().num_hidden_layers
    config = architecture.pruned_config(config, start=0, block_size=max(depth - layers, 0))
    built = AutoModelForCausalLM.from_config(config, dtype=precision.compute_dtype()).eval()
    state = {"stage": stage, "model": built, "blocks": block_sizes, "batch": batch, "scratch": scratch}
    state["prompts"] = {str(i): torch.randint(config.vocab_size, (tokens,)).tolist() for i in range(rows)}
    if stage in ("merging", "fine-tuning"):
        for name in ("a", "b") if stage == "merging" else ("a",):
            built.save_pretrained(scratch / name)
            store.load_tokenizer(model).save_pretrained(scratch / name)
        del state["model"]
    return state


def ours(state) -> None:
    {"similarity": _similarity, "decoding": _decoding, "fine-tuning": _training, "merging": _merging}[state["stage"]](
        state
    )


def _similarity(state) -> None:
    def tokenizer(texts, **_) -> BatchEncoding:  # the texts are token ids already
        ids = torch.tensor(texts)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    texts, size = list(state["prompts"].values()), state["batch"]
    found = similarity.measure_similarity(state["model"], tokenizer, texts, batch_size=size, max_length=512)
    for n in range(1, state["blocks"] + 1):
        similarity.choose_block(found.map, n)


def _decoding(state) -> None:
    """A quarter as many new tokens as prompt tokens."""
    new = len(state["prompts"]["0"]) // 4
    settings = {"batch_size": state["batch"], "max_new_tokens": new, "ends": [], "draw": decoding.GREEDY}
    list(decoding.decode(state["model"], state["prompts"], **settings))


def _training(state) -> None:
    """One epoch; the loss sees the second half of every row."""
    rows = [*state["prompts"].values()]
    masks = [[place >= len(row) // 2 for place in range(len(row))] for row in rows]
    data = Dataset.from_dict({"input_ids": rows, "completion_mask": [[*map(int, mask)] for mask in masks]})
    adapter = Path(tempfile.mkdtemp(dir=state["scratch"])) / "adapter"
    settings = finetuning.SETTINGS | {"batch_size": state["batch"]}
    finetuning_step.finetune(state["scratch"] / "a", data, adapter=adapter, **settings)


def _merging(state) -> None:
    a, b = state["scratch"] / "a", state["scratch"] / "b"
    merging.merge_checkpoints(a, b, out=state["scratch"] / "merged", t=0.5)


def measure(model: str, stage: str, amount: str, value: int) -> dict:
    """{value, seconds, bytes} of a stage with one amount changed; what several amounts share is measured once."""
    seconds, added = _measured(model, **BASE | {"stage": stage, amount: value})
    return {"value": value, "seconds": seconds, "bytes": added}


@functools.cache
def _measured(model: str, **size) -> tuple[float, int]:
    module = importlib.import_module("benchmarks.scaling")  # by that name a fresh process finds it, too
    with tempfile.TemporaryDirectory() as scratch:
        state, seconds = prepare(model, scratch=Path(scratch), **size), []
        for _ in range(TURNS):
            start = time.perf_counter()
            ours(state)
            seconds.append(time.perf_counter() - start)
    added, _ = compare.peaks(module, ["ours"], size=size, model=model)["ours"]
    return round(min(seconds), 4), max(added, MEGABYTE)


def exponent(points: list[dict], key: str) -> float:
    """The slope of log(key) against log(value)."""
    x, y = (np.log([point[name] for point in points]) for name in ("value", key))
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def draw(found: list[dict]) -> Figure:
    """A row per model, a panel per amount: time (lines) and added memory (dashed), relative to the smallest amount."""
    models = [*dict.fromkeys(entry["model"] for entry in found)]
    drawn, axes = figures.figure(len(WORDS), rows=len(models), width=17, height=4.2 * len(models))
    for axis, (model, amount) in zip(axes, [(m, amount) for m in models for amount in WORDS], strict=True):
        _panel(axis, [entry for entry in found if (entry["model"], entry["amount"]) == (model, amount)])
        axis.set(title=model if amount == "rows" else "", xlabel=WORDS[amount])
    drawn.suptitle("How time and added memory grow with the work")
    return drawn


def _panel(axis, entries: list[dict]) -> None:
    for entry in entries:
        for key, what, line in (("seconds", "time", "-"), ("bytes", "memory", "--")):
            x, y = (np.array([point[name] for point in entry["points"]]) for name in ("value", key))
            label = f"{entry['stage']}, {what}: {entry['exponents'][key]:.2f}"
            axis.plot(x, y / y[0], line, label=label, **LOOKS[entry["stage"]])
    values = sorted({point["value"] for entry in entries for point in entry["points"]})
    axis.set(xscale="log", yscale="log", ylabel="relative to the smallest amount", ylim=(0.1, 200))
    axis.set_xticks(values, [str(value) for value in values])
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.legend(fontsize=7, title="exponents", loc="upper left")


def table(found: list[dict]) -> pd.DataFrame:
    """The exponents, with the amounts between which they were measured."""
    return pd.DataFrame(
        {
            "model's shapes": entry["model"],
            "stage": entry["stage"],
            "amount": f"{WORDS[entry['amount']]}, {entry['points'][0]['value']} to {entry['points'][-1]['value']}",
            "exponent of time": f"{entry['exponents']['seconds']:.2f}",
            "exponent of added memory": f"{entry['exponents']['bytes']:.2f}",
            "MB added": " to ".join(f"{entry['points'][i]['bytes'] / MEGABYTE:.0f}" for i in (0, -1)),
        }
        for entry in found
    )


def main(models: list[str]) -> None:
    found = []
    for model, stage, amount in [(m, s, a) for m in models for s, amounts in AMOUNTS.items() for a in amounts]:
        points = [measure(model, stage, amount, value) for value in AMOUNTS[stage][amount]]
        exponents = {key: exponent(points, key) for key in ("seconds", "bytes")}
        found.append({"model": compare.model_name(model), "stage": stage, "amount": amount, "exponents": exponents})
        found[-1]["points"] = points
        print(found[-1], flush=True)
    (HERE / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "scaling.md").write_text(run.as_markdown(table(found)))
    draw(found).savefig(HERE / "scaling.png", metadata={"Software": None})
    run.PAGE.write_text(readme.fill_page(run.PAGE.read_text()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[compare.MODEL], help="as the study key `model` names them")
    main(parser.parse_args().models)
