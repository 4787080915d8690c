"""Merged adapters against whole weights, computed apart."""

import json
import math

import pytest
import torch
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model

from sdd_utils.models import store
from sdd_utils.steps import merging, task_vectors

MODULE = "base_model.model.model.layers.0.mlp.up_proj"


def adapter(folder, base, *, seed, rank=2, alpha=6, **more):
    """An adapter of random weights on a saved model, with the note that training leaves."""
    model, _ = store.load_model(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM", **more)
    wrapped = get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"weights": store.identity(base)}))
    return folder


@pytest.fixture
def base(tokenizer, tmp_path):
    model = tiny_llama(tokenizer)
    return store.save_model(model, tokenizer, folder=tmp_path / "base", parent="tiny", recipe={})


@pytest.fixture
def pair(base, tmp_path):
    return adapter(tmp_path / "a", base, seed=0), adapter(tmp_path / "b", base, seed=1, rank=3, alpha=3)


def weights(base, *adapters):
    """The state of the base with one adapter merged into it, in float32."""
    if not adapters:
        return store.load_model(base, dtype=torch.float32)[0].state_dict()
    return store.load_merged(base, adapter=adapters[0])[0].state_dict()


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_lerp_of_adapters_is_lerp_of_whole_weights(base, pair, tmp_path, t):
    task_vectors.merge_adapters(*pair, out=tmp_path / "both", t=t, how="lerp")
    left, right, merged = (weights(base, folder) for folder in (*pair, tmp_path / "both"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (1 - t) * left[name] + t * right[name], atol=1e-5, rtol=1e-5)


def test_slerp_goes_along_the_arc_between_what_was_added(base, pair, tmp_path):
    report = task_vectors.merge_adapters(*pair, out=tmp_path / "arc", t=0.4)
    start, left, right, merged = weights(base), *(weights(base, folder) for folder in (*pair, tmp_path / "arc"))
    name = "model.layers.0.mlp.up_proj.weight"
    vector, angle = merging.slerp(left[name] - start[name], right[name] - start[name], 0.4)
    torch.testing.assert_close(merged[name] - start[name], vector, atol=1e-5, rtol=1e-4)
    assert report["angles"][MODULE] == pytest.approx(angle, rel=1e-4)
    assert report["lerp_share"] == 0
    assert math.pi / 4 < min(report["angles"].values())  # two random changes are far from parallel
    untrained = "model.norm.weight"
    assert torch.equal(merged[untrained], start[untrained])


def test_a_merge_is_scored_as_an_adapter_beside_the_weights(base, pair, tmp_path):
    task_vectors.merge_adapters(*pair, out=tmp_path / "both", t=0.5)
    ids = torch.tensor([[5, 9, 7]])
    beside, _ = store.load_model(base, adapter=tmp_path / "both", dtype=torch.float32)
    merged, *_ = store.load_merged(base, adapter=tmp_path / "both")
    with torch.no_grad():
        torch.testing.assert_close(beside(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_merged_is_one_sentence(base, pair, tmp_path, tokenizer):
    out = tmp_path / "merged"
    dora = adapter(tmp_path / "dora", base, seed=2, use_dora=True)
    with pytest.raises(ValueError, match="adapter dora has use_dora = True: only plain LoRA is merged"):
        task_vectors.merge_adapters(pair[0], dora, out=out, t=0.5)
    fewer = adapter(tmp_path / "fewer", base, seed=2, exclude_modules=["up_proj"])
    with pytest.raises(ValueError, match=f"adapters a and fewer differ in '{MODULE}.lora_A.weight'"):
        task_vectors.merge_adapters(pair[0], fewer, out=out, t=0.5)
    (tmp_path / "b" / "training.json").write_text('{"weights": {"model.safetensors": "other"}}')
    with pytest.raises(ValueError, match="adapters a and b were trained on other weights"):
        task_vectors.merge_adapters(*pair, out=out, t=0.5)
    assert not out.exists()
