"""SLERP of two checkpoints of 0.4 billion parameters, tensor by tensor, beside mergekit (the extra `bench`)."""

import hashlib
import importlib.util
import shutil

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import roofline
from sdd_utils.models import store
from sdd_utils.steps import merging

NAME = "merging"
OWN_MODEL = "random, 0.4B"
DTYPE = "bfloat16"
PIECE = 2**21  # bytes
FULL = {"hidden": 1024, "layers": 24, "vocabulary": 49152}
SMALL = {"hidden": 32, "layers": 2, "vocabulary": 300}


def prepare(model, *, scratch, hidden: int, layers: int, vocabulary: int) -> dict:
    """Two random checkpoints in bfloat16, half a radian apart, with the tokenizer of `model`."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=11 * hidden // 4, num_hidden_layers=layers, vocab_size=vocabulary,
        num_attention_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    tokenizer = store.load_tokenizer(model)
    torch.manual_seed(0)
    built = LlamaForCausalLM(config).bfloat16()
    for name in ("a", "b"):
        built.save_pretrained(scratch / name)
        tokenizer.save_pretrained(scratch / name)
        for parameter in built.parameters():
            parameter.data += 0.5 * parameter.std() * torch.randn_like(parameter) if parameter.dim() > 1 else 0
    return {"folder": scratch, "parameters": built.num_parameters()}


def missing() -> str | None:
    return None if importlib.util.find_spec("mergekit") else 'mergekit is not installed, run pip install -e ".[bench]"'


def ours(state):
    out = state["folder"] / "ours"
    merging.merge_checkpoints(state["folder"] / "a", state["folder"] / "b", out=out, t=0.5)
    return out


def mergekit(state):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    a, b, out = (state["folder"] / name for name in ("a", "b", "mergekit"))
    shutil.rmtree(out, ignore_errors=True)
    parts = {"models": [{"model": str(a)}, {"model": str(b)}], "base_model": str(a), "merge_method": "slerp"}
    config = MergeConfiguration.model_validate(parts | {"parameters": {"t": 0.5}, "dtype": "bfloat16"})
    run_merge(config, str(out), options=MergeOptions(copy_tokenizer=False, quiet=True))
    return out


def copied(state):
    """What no merge can leave out, one after the other: read both checkpoints, hash and write as many bytes as one."""
    out, digest, space = state["folder"] / "copied", hashlib.sha256(), memoryview(bytearray(PIECE))
    with out.open("wb") as written:
        for parent in ("b", "a"):
            for path in sorted((state["folder"] / parent).glob("*.safetensors")):
                with path.open("rb", buffering=0) as read:
                    while count := read.readinto(space):
                        if parent == "a":
                            digest.update(space[:count])
                            written.write(space[:count])
    return digest.hexdigest()


PEERS = {
    "mergekit 0.1.5 SLERP": (mergekit, 2),  # the disk writes back when it likes, so more than one
    "reading both, hashing and writing one, on one core (the limit)": (copied, 2),
}


def least_seconds(model, state, answer) -> float:
    """Of reading two checkpoints and writing one, both at the rate of reading."""
    return 3 * 2 * state["parameters"] / roofline.read_rate()


def _tensors(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _ulps(tensor: torch.Tensor) -> torch.Tensor:
    """bfloat16 numbers as integers in the order of the numbers, so that neighbours differ by one."""
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def same(state, ours, peer) -> tuple[bool | None, str]:
    millions = f"{state['parameters'] / 1e6:.0f}M parameters"
    if isinstance(peer, str):
        return None, millions
    found, expected = _tensors(ours), _tensors(peer)
    gap = max(int((_ulps(found[name]) - _ulps(expected[name])).abs().max()) for name in expected)
    return found.keys() == expected.keys() and gap <= 1, f"{millions}, at most {gap} ulp apart"
