"""Whether a compressed folder serves: log-likelihoods by other engines beside plain passes of ours.

    python -m benchmarks.serving FOLDER          # by hand, minutes; writes benchmarks/serving.json and serving.md

The folder is what `make compress` made, with its GGUF file from `make gguf`. transformers reads it in this version, and
in the one before, which is installed into a folder for it. vLLM and llama.cpp do where `make bench-engines` put them.
llama.cpp can cut layers itself: where its tool was built, both cuts are compared (`llama_cpp_pruning`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from benchmarks import llama_cpp_pruning
from benchmarks.gguf_likelihoods import difference, llama_cpp, ours, pairs_of
from benchmarks.run import keep
from sdd_utils import ROOT
from sdd_utils.base.provenance import cpu_name
from sdd_utils.models import store
from tests.compatibility.check import install_version_4

OUT = Path(__file__).with_suffix(".json")
VLLM, LLAMA = (ROOT / name / "bin" / "python" for name in (".venv-vllm", ".venv-bench-llama_cpp"))
SAME = "bfloat16, same engine"
# Mean absolute difference per token, in nats, that an engine may have: of float32, of bfloat16 by other kernels, and of
# one engine with two files.
ALLOWED = {"float32": 1e-4, "bfloat16": 0.05, SAME: 1e-6}
PLAIN = """
import json, sys, torch, transformers
asked = json.load(sys.stdin)
model = transformers.AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
tokenizer, nats = transformers.AutoTokenizer.from_pretrained(asked["model"]), []
for prompt, continuation in asked["pairs"]:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + continuation])).logits[0, len(prompt) - 1 : -1]
    nats.append(logits.log_softmax(-1).gather(-1, torch.tensor(continuation)[:, None]).sum().item())
print(json.dumps({"version": transformers.__version__, "nats": nats}))
"""


def asked_in(python: Path | str, *script: str, asked: dict, environment: dict | None = None) -> dict:
    """What a script answers in another interpreter, which is asked by JSON."""
    command, pipes = [str(python), *script], {"stdout": subprocess.PIPE, "text": True, "check": True}
    done = subprocess.run(command, input=json.dumps(asked), env=os.environ | (environment or {}), **pipes)
    return json.loads(done.stdout.splitlines()[-1])


def engines(folder: Path, pairs: list) -> Iterator[tuple[str, str, list[float]]]:
    """(engine with its version, precision, summed log-likelihoods) of all that are installed."""
    asked = {"model": str(folder), "pairs": pairs, "threads": torch.get_num_threads(), "dtype": "bfloat16"}
    this = asked_in(sys.executable, "-c", PLAIN, asked=asked)
    yield f"transformers {this['version']}", "float32", this["nats"]
    with tempfile.TemporaryDirectory() as packages:
        install_version_4(packages)
        former = asked_in(sys.executable, "-c", PLAIN, asked=asked, environment={"PYTHONPATH": packages})
    yield f"transformers {former['version']}", "float32", former["nats"]
    if VLLM.is_file():
        found = asked_in(VLLM, str(Path(__file__).parent / "engines" / "vllm_likelihoods.py"), asked=asked)
        yield f"vLLM {found['version']}", "bfloat16", found["nats"]
    file = folder.with_name(f"{folder.name}.gguf")
    if LLAMA.is_file() and file.is_file():
        found = by_llama_cpp(file, pairs)
        yield f"llama.cpp (xllamacpp {found['version']}), {file.name}", "bfloat16", found["nats"]


def by_llama_cpp(file: Path, pairs: list) -> dict:
    """{version, nats} of a GGUF file."""
    return llama_cpp(str(LLAMA), file=str(file), threads=torch.get_num_threads(), texts=[], pairs=pairs)


def both_cuts(folder: Path, pairs: list) -> list[list[float]]:
    """Log-likelihoods of llama.cpp's own cut of the uncut model and of ours, both by llama.cpp."""
    with tempfile.TemporaryDirectory() as scratch:
        files = llama_cpp_pruning.cut_twice(folder, Path(scratch))
        return [by_llama_cpp(file, pairs)["nats"] for file in files.values()]


def measure(folder: Path, *, name: str) -> list[dict]:
    """An entry per engine: how far it is from plain passes of ours in its precision."""
    tokenizer = store.load_tokenizer(folder)
    pairs = [[tokenizer(part, add_special_tokens=False)["input_ids"] for part in pair] for pair in pairs_of(tokenizer)]
    own = {
        dtype: ours(store.load_model(folder, dtype=getattr(torch, dtype))[0], pairs)
        for dtype in ("float32", "bfloat16")
    }
    compared = [(engine, dtype, nats, own[dtype]) for engine, dtype, nats in engines(folder, pairs)]
    if LLAMA.is_file() and llama_cpp_pruning.TOOL.is_file():
        compared.append(("llama.cpp's own cut, beside ours", SAME, *both_cuts(folder, pairs)))
    return [
        {"model": name, "engine": engine, "precision": dtype, "prompts": len(pairs)}
        | {"tokens": sum(len(continuation) for _, continuation in pairs), "processor": cpu_name()}
        | difference(nats, reference, pairs)
        for engine, dtype, nats, reference in compared
    ]


def table(entries: list[dict]) -> pd.DataFrame:
    """The entries as text; differences are in nats per token."""
    return pd.DataFrame(
        {
            "model": entry["model"],
            "engine": entry["engine"],
            "precision": entry["precision"],
            "prompts (tokens)": f"{entry['prompts']} ({entry['tokens']})",
            "mean absolute difference per token": f"{entry['mean_absolute_per_token']:.4f}",
            "mean difference per token": f"{entry['mean_per_token']:+.4f}",
        }
        for entry in entries
    )


def main() -> None:
    """Measure, write, and end with status 1 where an engine computes another model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `make compress` made")
    parser.add_argument("--name", help="what the table calls the model (default: the folder's name)")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    entries = measure(folder, name=arguments.name or folder.name)
    keep(entries, OUT, key=("model", "engine", "processor"), table=table)
    print(table(entries).to_string(index=False))
    if wrong := [e["engine"] for e in entries if e["mean_absolute_per_token"] > ALLOWED[e["precision"]]]:
        raise SystemExit(f"{', '.join(wrong)} compute another model: see {OUT.name}")


if __name__ == "__main__":
    main()
