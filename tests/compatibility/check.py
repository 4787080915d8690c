"""Whether transformers 4 reads a saved folder as transformers 5 does: the same tokens, the same NLL of a text.

    python tests/compatibility/check.py            # by hand, a few minutes: it installs transformers 4 into a folder

Tiny random models of several families and the offline model, all with a block of layers removed, in float32.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from sdd_utils import ROOT
from sdd_utils.models import store
from sdd_utils.steps import pruning

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LONG = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
PLAIN = {"rope_type": "default"}
BY_KIND = {"full_attention": PLAIN | {"rope_theta": 1e6}, "sliding_attention": PLAIN | {"rope_theta": 1e4}}
KINDS = {
    "llama": {"rope_parameters": LONG | {"original_max_position_embeddings": 64}},
    "mistral": {"sliding_window": 8},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8, "rope_parameters": BY_KIND},
    "glm": {"rope_parameters": PLAIN | {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "pad_token_id": 0},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 2},
}
VERSION_4 = ["transformers>=4.57,<5", "tokenizers>=0.22,<0.23", "huggingface-hub>=0.34,<1"]
NLL = """
import json, sys, torch, transformers
text, *folders = sys.argv[1:]
for folder in folders:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    with torch.no_grad():
        nll = model(ids, labels=ids).loss.item()
    print(json.dumps({"nll": nll, "ids": ids.tolist(), "chat": chat, "version": transformers.__version__}))
"""
TEXT = "The cat sat on the mat, and then it went away: 1, 2, 3 and 40 times over the wall, as cats do.\n" * 3


def install_version_4(packages: str) -> None:
    """Install transformers 4, and what it needs in other versions, into a folder for PYTHONPATH."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, *VERSION_4]
    subprocess.run(install, check=True, stderr=subprocess.DEVNULL)


def measure(folders: list[Path], *, packages: str) -> list[dict]:
    """NLL and tokens of the text by each model, in a process that takes transformers from `packages` first."""
    command, environment = [sys.executable, "-c", NLL, TEXT, *map(str, folders)], os.environ | {"PYTHONPATH": packages}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-1500:])
    return [*map(json.loads, done.stdout.splitlines())]


def models():
    """(name, model, tokenizer) of every family."""
    tokenizer = store.load_tokenizer("smollm2-135m-instruct")
    for kind, changes in KINDS.items():
        torch.manual_seed(0)
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SIZE | ids | changes)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.15)  # so large that a wrong setting shows
        yield kind, model, tokenizer
    yield "smollm2-135m-instruct", *store.load_model("smollm2-135m-instruct", dtype=torch.float32)


def main() -> None:
    """Save, read with both versions, compare; ends with status 1 at the first difference."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = str(Path(scratch) / "transformers4")
        install_version_4(packages)
        saved = [
            store.save_model(
                pruning.remove_block(model, start=2, block_size=2),
                tokenizer,
                folder=Path(scratch) / kind,
                parent=kind,
                recipe={},
            )
            for kind, model, tokenizer in models()
        ]
        pairs = zip(saved, measure(saved, packages=str(ROOT)), measure(saved, packages=packages), strict=True)
        for folder, five, four in pairs:
            print(f"{folder.name}: NLL {five['nll']:.6f} in {five['version']}, {four['nll']:.6f} in {four['version']}")
            if five["ids"] != four["ids"] or five["chat"] != four["chat"] or abs(five["nll"] - four["nll"]) > 1e-5:
                raise SystemExit(f"{folder.name}: version 4 reads another model, tokenizer or chat template")


if __name__ == "__main__":
    main()
