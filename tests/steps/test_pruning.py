"""A pruned model is the hand-built one; it reloads, and its cache is addressed right; the accounting is the paper's."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from unlike_llama import CONFIGS, build

from sdd_utils.base.files import file_sha256
from sdd_utils.models import architecture, store
from sdd_utils.steps import pruning

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 6}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"sliding_window": 6}),
}
IDS = torch.tensor([[5, 9, 2, 44, 71, 3, 18, 60, 33, 12]])


def tiny(kind: str, **changes):
    torch.manual_seed(0)
    build, config, extra = KINDS[kind]
    return build(config(**{**TINY, **extra, **changes})).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("removed", [range(2), range(2, 5), range(5, 7), [1, 4], [0, 2, 5], [6, 3]])
def test_pruned_equals_hand_built_and_survives_a_reload(kind, removed, tmp_path):
    original = tiny(kind)
    kept = [layer for layer in range(7) if layer not in removed]
    per_layer = getattr(original.config, "layer_types", None)
    changes = {"layer_types": [per_layer[i] for i in kept]} if per_layer else {}
    by_hand = tiny(kind, num_hidden_layers=len(kept), **changes)
    state = {k: v for k, v in original.state_dict().items() if ".layers." not in k}
    for new, old in enumerate(kept):
        layer = original.model.layers[old].state_dict()
        state |= {f"model.layers.{new}.{name}": value.clone() for name, value in layer.items()}
    by_hand.load_state_dict(state)

    if isinstance(removed, range):
        pruned = pruning.remove_block(original, start=removed.start, block_size=len(removed))
    else:
        pruned = pruning.remove_layers(original, removed)
    pruned.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = by_hand(IDS).logits
        assert torch.equal(pruned(IDS).logits, expected)
        assert torch.equal(reloaded(IDS).logits, expected)
    assert reloaded.config.num_hidden_layers == len(kept)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached = pruned.generate(IDS, use_cache=True, **settings)
    assert torch.equal(cached, pruned.generate(IDS, use_cache=False, **settings))
    assert torch.equal(cached, reloaded.generate(IDS, use_cache=True, **settings))


@pytest.mark.parametrize("kind", CONFIGS)
def test_scattered_layers_leave_a_model_that_can_be_kept(kind, tokenizer, tmp_path):
    """Whatever an architecture says of single layers: `save_model` refuses what is, read back, another model."""
    model = build(kind)
    depth = model.config.get_text_config().num_hidden_layers
    pruning.remove_layers(model, [0, 2])
    store.save_model(model, tokenizer, folder=tmp_path / "cut", parent="p", recipe={})
    assert store.load_config(tmp_path / "cut").get_text_config().num_hidden_layers == depth - 2


@pytest.mark.parametrize("removed", [[7], [-1], [2, 2], [*range(7)]])
def test_impossible_layers_are_named(removed):
    with pytest.raises(ValueError, match=r"cannot be removed from 7: name some of 0..6, each once and not all of them"):
        pruning.remove_layers(tiny("llama"), removed)


def test_layers_are_renumbered_and_block_size_zero_changes_nothing():
    model = tiny("llama")
    assert pruning.remove_block(model, start=0, block_size=0).config.num_hidden_layers == 7
    pruning.remove_block(model, start=1, block_size=4)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]


LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA |= {"num_key_value_heads": 8, "tie_word_embeddings": False}
# n: Llama parameters in billions, cut in %, cut by matmul count in %, Mistral parameters in billions
PUBLISHED = {
    2: (7.594, 5.43, 5.81, 6.81),
    4: (7.158, 10.86, 11.63, 6.37),
    6: (6.722, 16.30, 17.44, 5.93),
    8: (6.285, 21.73, 23.25, 5.50),
    10: (5.849, 27.16, 29.06, 5.06),
}


def test_accounting_gives_the_published_sizes():
    llama = architecture.accounting_table(LlamaConfig(vocab_size=128256, **LLAMA), list(PUBLISHED))
    mistral = architecture.accounting_table(MistralConfig(vocab_size=32768, **LLAMA), list(PUBLISHED))
    for row, other in zip(llama, mistral, strict=True):
        parameters, cut, cut_matmul, of_mistral = PUBLISHED[row["block_size"]]
        assert round(row["parameters"] / 1e9, 3) == parameters
        assert round(100 * row["cut_parameters"], 2) == cut
        assert round(100 * row["cut_matmul"], 2) == pytest.approx(cut_matmul, abs=0.011)
        assert 0 <= other["parameters"] / 1e9 - of_mistral < 0.01  # Mistral's sizes are given cut off, not rounded


def test_tied_embeddings_count_once():
    tied = architecture.account(LlamaConfig(**TINY, tie_word_embeddings=True))
    untied = architecture.account(LlamaConfig(**TINY, tie_word_embeddings=False))
    assert untied.parameters - tied.parameters == 97 * 32
    assert untied.matmul == tied.matmul


@pytest.mark.parametrize(
    ("start", "block_size", "said"), [(0, 7, "0..6"), (0, -1, "0..6"), (6, 2, "0..5"), (-1, 2, "0..5")]
)
def test_impossible_blocks_are_named(start, block_size, said):
    with pytest.raises(ValueError, match=f"is impossible.*{said}"):
        pruning.remove_block(tiny("llama"), start=start, block_size=block_size)


def test_model_without_decoder_layers_is_refused():
    model = tiny("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="LlamaForCausalLM has no decoder layers to prune"):
        architecture.decoder_layers(model)


def test_manifest_names_the_weights_and_a_failed_save_leaves_nothing(model, tokenizer, tmp_path):
    folder = store.save_model(model, tokenizer, folder=tmp_path / "n2", parent="p", recipe={"block_size": 2})
    assert store.identity(folder) == {"model.safetensors": file_sha256(folder / "model.safetensors")}
    with pytest.raises(TypeError):
        store.save_model(model, tokenizer, folder=tmp_path / "n3", parent="p", recipe={"not json": {1, 2}})
    assert [path.name for path in tmp_path.iterdir()] == ["n2"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-such-model", "does not exist: use one of smollm2"),
        ("org/unknown-model", "is not all here and the hub cannot be reached"),
    ],
)
def test_unknown_model_is_named(name, said):
    with pytest.raises(FileNotFoundError, match=said):
        store.find_model(name)


def test_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder without config.json"):
        store.find_model(str(tmp_path))
