"""Weights that multiply a token against torch's FLOP counter, the KV cache against a real one, the layers' place."""

import peft
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from sdd_utils.models import architecture
from sdd_utils.steps import similarity
from sdd_utils.study.schema import load_study
from sdd_utils.sweep import plan

SIZE = {"vocab_size": 130, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "pad_token_id": 0}
SIZE |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128}
GROUPED = SIZE | {"intermediate_size": 48, "num_key_value_heads": 2}
MIXED = GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}
GROUPS = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
KINDS = {
    "llama": GROUPED,
    "qwen3": GROUPED | {"head_dim": 12},
    "gemma3_text": GROUPED | {"head_dim": 8},
    "mixtral": MIXED | {"num_local_experts": 6},
    "qwen2_moe": MIXED | {"num_experts": 6, "shared_expert_intermediate_size": 16, "mlp_only_layers": [1]},
    "qwen3_moe": MIXED | {"num_experts": 6, "head_dim": 8},
    "deepseek_v3": MIXED | LATENT | GROUPS,
    "gpt_oss": MIXED | {"num_local_experts": 6, "head_dim": 8, "layer_types": ["full_attention"] * 4},
    "granitemoe": MIXED | {"num_local_experts": 6},
    "jetmoe": {"vocab_size": 130, "hidden_size": 32, "num_hidden_layers": 4, "num_key_value_heads": 2, "kv_channels": 8}
    | {"intermediate_size": 48, "num_local_experts": 6, "num_experts_per_tok": 2},
    "gpt2": SIZE,
    "gpt_bigcode": SIZE,
    "gpt_neox": SIZE | {"intermediate_size": 48},
    "opt": SIZE | {"ffn_dim": 48, "word_embed_proj_dim": 24},
    "phi": GROUPED,
    "phi3": GROUPED,
    "bloom": SIZE,
    "falcon": SIZE | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "mpt": {"vocab_size": 130, "d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 128},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"] * 2},
    "mamba": {"vocab_size": 130, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4},
}
TOKENS = 64


def no_attention(module, query, key, value, mask=None, **settings):
    """The values as they are: no products but those with weights."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("none", no_attention)
transformers.AttentionMaskInterface.register("none", lambda *_, **__: None)


def made(kind: str, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **KINDS[kind] | changes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def counted(model) -> float:
    """What torch counts for one of many tokens, half a FLOP each, without attention where transformers lets us."""
    if type(model).__name__ not in ("FalconForCausalLM", "BloomForCausalLM", "MptForCausalLM", "MambaForCausalLM"):
        model.set_attn_implementation("none")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # torch does not count grouped products
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(TOKENS)[None] + 3, use_cache=False)
    return counter.get_total_flops() / TOKENS / 2


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_products_are_those_that_torch_counts(kind):
    model = made(kind)
    scores = 2 * 4 * 32 * TOKENS if kind in ("bloom", "mpt") else 0  # attention by plain products, 4 layers
    padded = {"mamba": 0.04, "lfm2": 1e-4}  # a convolution also runs over its padding
    expected = pytest.approx(counted(model) - scores, rel=padded.get(kind, 1e-9))
    assert architecture.account_of(model).matmul == expected


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mamba"}))
def test_kv_cache_is_as_wide_as_a_real_one(kind):
    model = made(kind)
    with torch.no_grad():
        cache = model(torch.arange(5)[None] + 3, use_cache=True).past_key_values
    held = sum(
        layer.keys.numel() + layer.values.numel() for layer in cache.layers if getattr(layer, "keys", None) is not None
    )
    shape = architecture.shape_of(model.config, block_size=0, rank=1, targets="all-linear")
    assert shape.kv_width == held / 5
    assert shape.parameters == model.num_parameters()


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_can_be_planned_from_its_configuration(kind, tmp_path):
    made(kind).config.save_pretrained(tmp_path)
    study = load_study("embedded").model_copy(update={"model": str(tmp_path / "config.json"), "block_sizes": [1, 2]})
    study = study.model_copy(update={"finetune_block_sizes": [2], "merge_pairs": []})
    costs, origin = plan.cost_model(study, hardware=None)
    sizes = [costs.shapes[n].matmul for n in (0, 1, 2)]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert "still to do" in plan.plan_report("mine", costs, [], origin=origin, power="power")


def test_adapter_of_transposed_maps_is_counted_as_peft_counts_it():
    model = made("gpt2")
    shape = architecture.shape_of(model.config, block_size=0, rank=3, targets="all-linear")
    lora = peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, lora)
    assert shape.adapter == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


def multimodal(**changes):
    """Gemma 3 with a vision tower that is as deep as its text model."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    ids = {"image_token_index": 125, "boi_token_index": 126, "eoi_token_index": 127, "mm_tokens_per_image": 4}
    config = transformers.Gemma3Config(
        text_config=KINDS["gemma3_text"] | changes, vision_config=vision | {"image_size": 28, "patch_size": 14}, **ids
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_layers_of_a_multimodal_model_are_those_of_its_text_decoder():
    model = multimodal()
    layers = architecture.decoder_layers(model)
    assert {type(layer).__name__ for layer in layers} == {"Gemma3DecoderLayer"}
    assert layers is model.model.language_model.layers
    shape, alone = (
        architecture.shape_of(m.config, block_size=0, rank=1, targets="q_proj") for m in (model, made("gemma3_text"))
    )
    assert (shape.matmul, shape.kv_width, shape.layer_width) == (alone.matmul, alone.kv_width, alone.layer_width)
    assert shape.parameters > alone.parameters


def test_other_lists_as_long_as_the_decoder_are_not_taken():
    git = transformers.GitConfig(
        **SIZE, intermediate_size=48, vision_config={"hidden_size": 96, "num_hidden_layers": 4}
    )
    assert type(architecture.decoder_layers(architecture.without_weights(git))[0]).__name__ == "GitLayer"
    model = made("llama")
    small = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))
    model.model._modules = {"mtp": small} | model.model._modules  # comes first
    assert architecture.decoder_layers(model) is model.model.layers


def test_similarity_reads_text_with_a_multimodal_model(tokenizer):
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    measured = []
    for model in (multimodal(vocab_size=len(tokenizer)), made("gemma3_text", vocab_size=len(tokenizer))):
        generator = torch.Generator().manual_seed(1)
        for parameter in architecture.text_decoder(model).parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        texts = ["one", "a longer text", "two words"]
        measured.append(similarity.measure_similarity(model, tokenizer, texts, batch_size=2, max_length=64))
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert (measured[0].map == measured[1].map).all()
    assert measured[0].map[0, 4] > 0.05
