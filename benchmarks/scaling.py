"""How time and memory grow with the work: `python -m benchmarks.scaling` writes `scaling.json`, `.png` and `.md`.

Small random Llamas, so that it takes minutes; exponents are slopes of log(time) against log(amount), least squares.
Memory is what the work adds to a fresh process at its peak.
"""

import importlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import ticker
from matplotlib.figure import Figure
from transformers import BatchEncoding, LlamaConfig, LlamaForCausalLM

from benchmarks import compare, run
from sdd_utils.engine import decoding
from sdd_utils.report import figures
from sdd_utils.steps import merging, similarity
from sdd_utils.sweep import readme

HERE = Path(__file__).parent
BASE = {"layers": 8, "rows": 16, "tokens": 128, "block_sizes": 4}
AMOUNTS = {
    "similarity": {
        "rows": [8, 16, 64], "tokens": [64, 128, 512], "layers": [8, 16, 32], "block_sizes": [1, 3, 7]
    },
    "decoding": {"rows": [8, 16, 64], "tokens": [64, 128, 512], "layers": [8, 16, 32]},
    "merging": {"layers": [8, 16, 64]},
}  # fmt: skip
LOOKS = {
    "similarity": {"color": "C0", "marker": "o"},
    "decoding": {"color": "C1", "marker": "^"},
    "merging": {"color": "C2", "marker": "s"},
}
WORDS = {"rows": "rows", "tokens": "tokens per row", "layers": "layers", "block_sizes": "block sizes"}
TURNS = 3
MEGABYTE = 2**20  # less than this is not told from the allocator's noise
SMALL = BASE | {"stage": "similarity"}  # the warm-up of `compare.peak`


def prepare(model, *, scratch, stage: str, layers: int, rows: int, tokens: int, block_sizes: int) -> dict:
    """A random model of so many layers, and rows of exactly so many tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3, "num_key_value_heads": 3}
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=2048, max_position_embeddings=2048, **sizes)
    built = LlamaForCausalLM(config).eval()
    state = {"stage": stage, "model": built, "blocks": block_sizes, "scratch": scratch}
    state["prompts"] = {str(i): torch.randint(2048, (tokens,)).tolist() for i in range(rows)}
    if stage == "merging":
        for name in ("a", "b"):
            built.save_pretrained(scratch / name)
    return state


def ours(state) -> None:
    {"similarity": _similarity, "decoding": _decoding, "merging": _merging}[state["stage"]](state)


def _similarity(state) -> None:
    def tokenizer(texts, **_) -> BatchEncoding:  # the texts are token ids already
        ids = torch.tensor(texts)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    texts = list(state["prompts"].values())
    found = similarity.measure_similarity(state["model"], tokenizer, texts, batch_size=8, max_length=512)
    for n in range(1, state["blocks"] + 1):
        similarity.choose_block(found.map, n)


def _decoding(state) -> None:
    """A quarter as many new tokens as prompt tokens."""
    new = len(state["prompts"]["0"]) // 4
    settings = {"batch_size": 32, "max_new_tokens": new, "ends": [], "draw": decoding.GREEDY}
    list(decoding.decode(state["model"], state["prompts"], **settings))


def _merging(state) -> None:
    a, b = state["scratch"] / "a", state["scratch"] / "b"
    merging.merge_checkpoints(a, b, out=state["scratch"] / "merged", t=0.5)


def measure(stage: str, amount: str, value: int) -> dict:
    """{seconds, bytes} of a stage with one amount changed."""
    module = importlib.import_module("benchmarks.scaling")  # by that name a fresh process finds it, too
    size = BASE | {"stage": stage, amount: value}
    with tempfile.TemporaryDirectory() as scratch:
        state = prepare("", scratch=Path(scratch), **size)
        ours(state)
        seconds = []
        for _ in range(TURNS):
            start = time.perf_counter()
            ours(state)
            seconds.append(time.perf_counter() - start)
    added = compare.peak(module, "ours", size=size)
    return {"value": value, "seconds": min(seconds), "bytes": max(added, MEGABYTE)}


def exponent(points: list[dict], key: str) -> float:
    """The slope of log(key) against log(value)."""
    x, y = (np.log([point[name] for point in points]) for name in ("value", key))
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def draw(found: list[dict]) -> Figure:
    """A panel per amount: time (lines) and added memory (dashed), relative to the smallest amount, log-log."""
    drawn, axes = figures.figure(len(WORDS), width=14, height=4.2)
    for axis, (amount, words) in zip(axes, WORDS.items(), strict=True):
        entries = [entry for entry in found if entry["amount"] == amount]
        for entry in entries:
            for key, what, line in (("seconds", "time", "-"), ("bytes", "memory", "--")):
                x, y = (np.array([point[name] for point in entry["points"]]) for name in ("value", key))
                label = f"{entry['stage']}, {what}: {entry['exponents'][key]:.2f}"
                axis.plot(x, y / y[0], line, label=label, **LOOKS[entry["stage"]])
        values = sorted({point["value"] for entry in entries for point in entry["points"]})
        axis.set(xscale="log", yscale="log", xlabel=words, ylabel="relative to the smallest amount", ylim=(0.3, 40))
        axis.set_xticks(values, [str(value) for value in values])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.legend(fontsize=8, title="exponents", loc="upper left")
    drawn.suptitle("How time and added memory grow with the work")
    return drawn


def table(found: list[dict]) -> pd.DataFrame:
    """The exponents, with the amounts between which they were measured."""
    return pd.DataFrame(
        {
            "stage": entry["stage"],
            "amount": f"{WORDS[entry['amount']]}, {entry['points'][0]['value']} to {entry['points'][-1]['value']}",
            "exponent of time": f"{entry['exponents']['seconds']:.2f}",
            "exponent of added memory": f"{entry['exponents']['bytes']:.2f}",
            "MB added": " to ".join(f"{entry['points'][i]['bytes'] / MEGABYTE:.0f}" for i in (0, -1)),
        }
        for entry in found
    )


def main() -> None:
    found = []
    for stage, amounts in AMOUNTS.items():
        for amount, values in amounts.items():
            points = [measure(stage, amount, value) for value in values]
            exponents = {key: exponent(points, key) for key in ("seconds", "bytes")}
            found.append({"stage": stage, "amount": amount, "exponents": exponents, "points": points})
            print(stage, amount, exponents, flush=True)
    (HERE / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "scaling.md").write_text(table(found).to_markdown(index=False, disable_numparse=True) + "\n")
    draw(found).savefig(HERE / "scaling.png", metadata={"Software": None})
    run.PAGE.write_text(readme.fill_page(run.PAGE.read_text()))


if __name__ == "__main__":
    main()
