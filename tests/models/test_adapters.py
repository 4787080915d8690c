"""An adapter computes beside the weights as peft has it; one of another model is refused; a merge says what it lost."""

import json
import shutil

import peft
import pytest
import torch
import transformers

from sdd_utils.models import adapters, store
from sdd_utils.steps import lora_training, pruning

IDS = torch.arange(5, 40)[None]


def write_adapter(folder, path, *, scale: float = 0.2, targets="all-linear"):
    """A random adapter of a model, as peft writes it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    wrapped, generator = peft.get_peft_model(model, config), torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    wrapped.save_pretrained(path)
    return path


def by_peft(folder, path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, path).eval()(input_ids=IDS).logits


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def adapter(model_folder, tmp_path):
    return write_adapter(model_folder, tmp_path / "adapter")


def test_beside_the_weights_and_merged_it_is_pefts_model(model_folder, adapter):
    expected = by_peft(model_folder, adapter)
    beside, _ = store.load_model(model_folder, adapter=adapter)
    merged, _, lost = store.load_merged(model_folder, adapter=adapter)
    assert torch.allclose(logits_of(beside), expected, atol=1e-5)
    assert torch.allclose(logits_of(merged), expected, atol=1e-4)
    assert not [*adapters.lora_layers(merged)]
    assert lost == 0


def test_a_merge_into_bfloat16_says_what_it_lost(model_folder, tmp_path):
    small = write_adapter(model_folder, tmp_path / "small", scale=0.01)
    merged, _, lost = store.load_merged(model_folder, adapter=small, dtype=torch.bfloat16)
    exact, _, _ = store.load_merged(model_folder, adapter=small)
    base, _ = store.load_model(model_folder)
    norms = {"lost": 0.0, "update": 0.0}
    for name, parameter in base.named_parameters():
        if name.endswith("proj.weight"):
            wanted = exact.get_parameter(name)
            norms["lost"] += float((merged.get_parameter(name).float() - wanted).square().sum())
            norms["update"] += float((wanted - parameter).square().sum())
    assert lost == pytest.approx((norms["lost"] / norms["update"]) ** 0.5, rel=1e-3)
    assert lost > 0.3  # most of so small an update is gone
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert merged.model.rotary_emb.inv_freq.dtype == torch.float32


def test_in_bfloat16_more_of_an_update_reaches_the_logits_beside_the_weights(model_folder, tmp_path):
    small = write_adapter(model_folder, tmp_path / "small", scale=0.01)
    exact = logits_of(store.load_model(model_folder, adapter=small)[0])
    base = store.load_model(model_folder, dtype=torch.bfloat16)[0]
    rounded = {name: parameter.float() for name, parameter in base.named_parameters()}
    beside, _ = store.load_model(model_folder, adapter=small, dtype=torch.bfloat16)
    layer = next(adapters.lora_layers(beside))
    assert layer.get_base_layer().weight.dtype == layer.lora_A["default"].weight.dtype == torch.bfloat16
    assert torch.equal(layer.get_base_layer().weight.float(), rounded["model.layers.0.self_attn.q_proj.weight"])
    assert (logits_of(beside).float() - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("depth", [1, 2])
def test_an_adapter_of_another_depth_is_refused(model_folder, tokenizer, tmp_path, depth):
    layers = store.load_config(model_folder).num_hidden_layers
    model = pruning.remove_block(store.load_model(model_folder)[0], start=0, block_size=layers - depth)
    shallow = store.save_model(model, tokenizer, folder=tmp_path / "shallow", parent="x", recipe={})
    for trained_on, named in ((model_folder, shallow), (shallow, model_folder)):
        path = write_adapter(trained_on, tmp_path / f"of-{trained_on.name}")
        with pytest.raises(ValueError, match="does not fit this LlamaForCausalLM: name the checkpoint"):
            store.load_model(named, adapter=path)


def test_an_adapter_of_other_weights_is_refused(model_folder, adapter, tmp_path):
    trained_on = {"weights": store.identity(model_folder)}
    (adapter / adapters.REPORT).write_text(json.dumps(trained_on))
    store.load_model(model_folder, adapter=adapter)
    other = shutil.copytree(model_folder, tmp_path / "other")
    store.load_model(other, adapter=adapter)  # the same weights, wherever they lie
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="adapter adapter was trained on other weights: name its checkpoint"):
        store.load_model(other, adapter=adapter)


def test_tied_embeddings_are_neither_trained_nor_merged(tmp_path, tokenizer):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **size)
    folder = tmp_path / "tied"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, _ = store.load_model(folder)
    for targets in ("embed_tokens", "q_proj,lm_head"):
        with pytest.raises(ValueError, match="whose weights another module shares: leave it out"):
            lora_training.check_targets(model, targets)
    path = write_adapter(folder, tmp_path / "tied-adapter", targets=["embed_tokens", "q_proj"])
    beside, _ = store.load_model(folder, adapter=path)
    assert torch.allclose(logits_of(beside), by_peft(folder, path), atol=1e-5)
    with pytest.raises(ValueError, match=r"embed_tokens.* shares its weights with another module"):
        store.load_merged(folder, adapter=path)
