"""What is written is what formulas of the formats make of the weights, and what is loaded computes with that."""

import os

import pytest
import torch
from scipy.stats import norm
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sdd_utils.models import store
from sdd_utils.steps import quantization

bitsandbytes = pytest.importorskip("bitsandbytes")
IDS = torch.arange(5, 40)[None]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tiny model wide enough for scales of 64 weights, in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=len(tokenizer), initializer_range=0.1)  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["bf16", "int8", "nf4"])
def written(request, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("formats") / request.param
    return request.param, quantization.write_quantized(folder, format=request.param, folder=out)


def nf4_levels():
    """The 16 levels of QLoRA (arXiv 2305.14314): quantiles of a normal distribution, 0 among them, within -1 and 1."""
    offset = 0.9677083
    above = norm.ppf([offset + (0.5 - offset) * i / 8 for i in range(8)])
    below = -norm.ppf([offset + (0.5 - offset) * i / 7 for i in range(7)])
    return torch.tensor(sorted([*above, 0.0, *below])) / max(above)


def rounded(weight, kind):
    """The weights that a format keeps, by its formula."""
    weight = weight.float()
    if kind == "int8":
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / scale).round() * scale
    blocks = weight.reshape(-1, 64)
    largest, levels = blocks.abs().amax(dim=1, keepdim=True), nf4_levels().float()
    nearest = ((blocks / largest)[..., None] - levels).abs().argmin(dim=-1)
    return (levels[nearest] * largest).reshape(weight.shape)


def kept(layer, kind):
    """The weights of a loaded layer, unpacked."""
    if kind == "int8":
        return layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def linears(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


@torch.no_grad()
def test_weights_are_kept_as_the_format_says_and_the_head_as_it_is(folder, written):
    kind, path = written
    plain, loaded = (linears(store.load_model(where)[0]) for where in (folder, path))
    assert plain.keys() == loaded.keys()
    for name, layer in loaded.items():
        weight = plain[name].weight
        if kind == "bf16" or name == "lm_head":
            assert type(layer) is nn.Linear
            assert torch.equal(layer.weight.float(), weight.float())
            continue
        error = (kept(layer, kind) - rounded(weight, kind)).norm() / weight.float().norm()
        assert error < (0.002 if kind == "int8" else 0.02), name  # the scales of nf4 are rounded as well
        lost = (kept(layer, kind) - weight.float()).norm() / weight.float().norm()
        assert lost == pytest.approx({"int8": 0.006, "nf4": 0.09}[kind], rel=0.5), name


def test_what_is_loaded_computes_with_the_weights_that_are_kept(folder, written):
    """Against the plain model with these weights put into it."""
    kind, path = written
    loaded, _ = store.load_model(path)
    plain, _ = store.load_model(folder)
    for name, layer in linears(loaded).items():
        if type(layer) is not nn.Linear:
            linears(plain)[name].weight.data = kept(layer, kind).to(plain.dtype)
    with torch.inference_mode():
        expected, found = (model(IDS).logits.float() for model in (plain, loaded))
    assert (found - expected).norm() / expected.norm() < 0.05  # activations in bfloat16, or in 8 bits
    with torch.inference_mode():
        assert torch.equal(loaded(IDS).logits.float(), found)


def test_fewer_bits_are_fewer_bytes(folder, tmp_path):
    sizes = []
    for kind in quantization.FORMATS:
        path = quantization.write_quantized(folder, format=kind, folder=tmp_path / kind)
        sizes.append(quantization.bytes_of(path))
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in path.iterdir()}
    assert sizes == sorted(sizes, reverse=True)
    plain, _ = store.load_model(folder)
    linear = sum(layer.weight.numel() for name, layer in linears(plain).items() if name != "lm_head")
    assert sizes[0] - sizes[1] == pytest.approx(linear, rel=0.1)  # a byte less for each weight


def test_a_model_that_is_too_narrow_for_nf4_is_told_in_a_sentence(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"^nf4 needs layers of a multiple of 64 inputs, not 32: use int8 alone$"):
        quantization.write_quantized(model_folder, format="nf4", folder=tmp_path / "nf4")
    assert os.listdir(tmp_path) == []


def test_speed_is_of_a_token_and_of_many(model):
    seconds = quantization.speed(model)
    assert list(seconds) == ["decoding", "reading"]
    assert all(value > 0 for value in seconds.values())


def test_a_missing_library_is_told_in_a_sentence(monkeypatch):
    quantization.check_library()
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="needs bitsandbytes, which is not installed: run 'make quantization'"):
        quantization.check_library()
