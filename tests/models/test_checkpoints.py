"""What is saved is what is read back: rules by a layer's number are renumbered, or the checkpoint is refused."""

import json
import stat

import pytest
import torch
import transformers

from sdd_utils.models import store
from sdd_utils.steps import pruning

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
KINDS = {
    "llama": {},
    "qwen2_moe": EXPERTS | {"decoder_sparse_step": 2, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS | {"head_dim": 8, "mlp_only_layers": [0, 4]},
    "deepseek_v3": LATENT | ROUTED | {"first_k_dense_replace": 2},
    "minicpm3": LATENT,
    "gpt_neo": {"num_layers": 6, "num_heads": 4, "attention_types": [[["global", "local"], 3]], "window_size": 4},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 1, 0]},
}
IDS = torch.tensor([[5, 9, 2, 44, 71, 3, 18, 60, 33, 12]])


def tiny(kind: str, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(SIZE | KINDS[kind] | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.15)
    return model.eval()


def passed_over(model, *, start: int, block_size: int) -> torch.Tensor:
    """Logits with the block's layers giving what they were given: what pruning means, without cutting anything."""
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 6)
    for layer in layers[start : start + block_size]:
        layer.forward = lambda states, *_, **__: (states, None) if model.config.model_type == "gpt_neo" else states
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "block_size"), [(1, 1), (2, 2)])
def test_rules_by_a_layers_number_survive_cutting_and_reading_back(kind, start, block_size, tokenizer, tmp_path):
    expected = passed_over(tiny(kind), start=start, block_size=block_size)
    pruned = pruning.remove_block(tiny(kind), start=start, block_size=block_size)
    folder = store.save_model(pruned, tokenizer, folder=tmp_path / "n", parent="x", recipe={})
    loaded, _ = store.load_model(folder, dtype=torch.float32)
    with torch.no_grad():
        again = loaded(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(again, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "start", "said"),
    [
        # The weight of attention's second half is 0.8 - 0.6 exp(-0.3 i) in layer i: a number that is nowhere written.
        (transformers.DiffLlamaConfig(**SIZE), 1, r"its model.layers.1.self_attn.lambda_init is 0.3.* in place of 0.5"),
        # Only the last layer has a bias.
        (transformers.GPTNeoXJapaneseConfig(**SIZE), 4, r"cannot be kept: read back, 1 of its tensors are missing"),
    ],
)
def test_a_rule_that_no_configuration_holds_is_refused_and_nothing_kept(config, start, said, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    pruned = pruning.remove_block(model, start=start, block_size=2)
    with pytest.raises(ValueError, match=said) as told:
        store.save_model(pruned, tokenizer, folder=tmp_path / "n", parent="x", recipe={})
    assert type(model).__name__ in str(told.value)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_come_back_are_refused(model_folder, tokenizer, tmp_path, monkeypatch):
    model, _ = store.load_model(model_folder)
    monkeypatch.setattr(type(model), "save_pretrained", _without_a_tensor(type(model).save_pretrained))
    with pytest.raises(ValueError, match=r"1 of its tensors are missing, such as model.norm.weight; nothing was saved"):
        store.save_model(model, tokenizer, folder=tmp_path / "n", parent="x", recipe={})
    assert not list(tmp_path.iterdir())


def _without_a_tensor(save):
    def save_less(model, folder, **settings):
        state = {name: tensor for name, tensor in model.state_dict().items() if name != "model.norm.weight"}
        save(model, folder, state_dict=state, **settings)

    return save_less


def test_a_model_that_lacks_tensors_is_not_loaded_with_random_ones(model_folder, tokenizer, tmp_path):
    model, _ = store.load_model(model_folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path / "cut", state_dict=state)
    tokenizer.save_pretrained(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"lacks 3 tensors of a LlamaForCausalLM, such as model.layers.1.mlp"):
        store.load_model(tmp_path / "cut")


def test_a_folder_has_the_names_of_version_4_and_its_group_may_read_it(tokenizer, tmp_path):
    rotary = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    model = tiny("llama", rope_parameters=rotary)
    folder = store.save_model(model, tokenizer, folder=tmp_path / "n", parent="x", recipe={})
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"]["factor"] == 2.0
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(settings.get("extra_special_tokens"), list)
    assert all(path.stat().st_mode & stat.S_IRGRP for path in (folder, *folder.iterdir()))
    assert store.load_config(folder).rope_parameters == rotary


def test_a_number_of_experts_has_its_name_of_version_4(tokenizer, tmp_path):
    folder = store.save_model(tiny("qwen3_moe"), tokenizer, folder=tmp_path / "n", parent="x", recipe={})
    config = json.loads((folder / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 4
