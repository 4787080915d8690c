"""A tiny random model of every architecture that transformers has a causal language model for.

The sizes in a configuration are recognised by their names and made small; what says which layer is of which kind stays
as it is. `SPECIAL` holds what a name does not tell, and rules that the default values would not show.
"""

import re

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CLASSES = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # {model type: class}
DEPTH, WINDOW, VOCABULARY = 6, 8, 260
END, BEGIN, PAD = 258, 259, 256

# The first pattern that a name matches decides its value; a number below 1 or a list stays.
SIZES = {
    r"^vocab_size.*|^n_token$|^unigram_vocab_size$": VOCABULARY,
    r"^(num_hidden_layers|n_layers?|num_layers|depth|(encoder|decoder)_layers)$": DEPTH,
    r"^(hidden_size(_global)?|d_model|n_embd|(emb_|embed_)?dim|embedding_size|dim_model)$": 32,
    r"^(word_embed_proj_dim|lru_width)$": 32,
    r"^(attention|text)_hidden_size$": 64,
    r".*(intermediate|ffn|mlp_hidden).*|^(n_inner|d_ff|dim_ff|feed_forward_size)$": 48,
    r"^(\w+_)?(num_attention_heads|num_heads|n_heads?|attention_heads)$": 4,
    r"^(\w+_)?(num_key_value_heads|multi_query_group_num|num_kv_heads|kv_n_heads)$": 2,
    r"^(mamba_n_heads|n_mamba_heads|mamba_num_heads)$": 4,
    r"^(linear_num_key_heads|linear_num_heads)$": 2,
    r"^linear_num_value_heads$": 4,
    r"^rotary_dim$|^index_topk$": 8,
    r"^(\w+_)?(head_dim|d_head|kv_channels|v_dim|d_kv)$": 8,
    r"^(q|kv|o|index|w)\w*_lora_rank$": 8,
    r"^(mamba_d_state|state_size|ssm_state_size|d_state)$": 8,
    r"^(time_step_rank|mamba_dt_rank)$": 4,
    r"^(n_groups|mamba_n_groups|mamba_ngroups|n_group|num_expert_group|topk_group)$": 1,
    r"^(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts)$": 4,
    r"^(num_experts_per_tok(en)?|num_selected_experts|moe_topk|moe_k|moe_top_k|experts_per_token)$": 2,
    r"^(\w+_)?(sliding_window(_size)?|attention_chunk_size|window_size|attention_window_size)$": WINDOW,
    r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length)$": 512,
    r".*(dropout|pdrop|_drop|jitter_noise|layerdrop)(_p|_prob)?$": 0.0,
    r"^eos_token_id$": END,
    r"^bos_token_id$": BEGIN,
    r"^pad_token_id$": PAD,
    r"^\w+_token_(id|index)$": VOCABULARY - 1,
}
QWEN4_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
QWEN4_INDEXER |= {"indexer_compress_ratio": 2}
DOTS3_WINDOWED = dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4) | {"swa_head_dim": 16}
DOTS3_WINDOWED |= dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank", "swa_qk_nope_head_dim", "swa_v_head_dim"), 8)
SPECIAL: dict[str, dict] = {
    # sizes that a name does not tell, or that must fit one another
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"first_k_dense_replace": 2, "num_experts_per_tok": 2},
    "doge": {"keep_window_size": 512},
    "dots1": {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": DOTS3_WINDOWED,
        "vision_config": {"mlp_layer_types": ["dense", "sparse"] * 3, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_out_dim": 32},
    },
    "dots3_note_text": DOTS3_WINDOWED,
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["full_attention", "sliding_attention"] * 3},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "hunyuan_v1_moe": {"moe_topk": 2, "num_experts": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] + ["linear_attention"] * 2
    },
    "qwen4_exp": {"text_config": QWEN4_INDEXER},
    "qwen4_exp_text": QWEN4_INDEXER,
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [8, 24]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 3, "num_mem_blocks": 2},
    "zaya": {"num_experts_per_tok": 1},
    # rules by index that the default values would not show
    "afmoe": {"num_dense_layers": 2},
    "bamba": {"attn_layer_indices": [1, 4]},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 4},
    "flint": {"mlp_only_layers": [0, 3]},
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "laguna": {"layer_types": ["full_attention", "sliding_attention"] * 3},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mellum": {"layer_types": ["full_attention", "sliding_attention"] * 3},
    "minicpm3": {"scale_depth": 1.4},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 3},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3_moe": {"mlp_only_layers": [0, 4]},
    "qwen3_next": {"mlp_only_layers": [0, 4]},
    "rwkv": {"rescale_every": 2},
}


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer():
    """One token per byte; a text shows every token but the end, so that equal texts are equal tokens."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.Fuse()
    core.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>", "<|begin|>"])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>")
    wrapped.chat_template, wrapped.padding_side = CHAT_TEMPLATE, "left"
    return wrapped


def small(name: str, value):
    """The value that a size of this name gets; any other value stays."""
    if isinstance(value, bool | str) or not isinstance(value, int | float | type(None)):
        return value
    size = next((size for pattern, size in SIZES.items() if re.match(pattern, name)), value)
    unset = name != "head_dim" if value is None else value <= 0
    return value if unset or (isinstance(value, float) and isinstance(size, int)) else size


LEFT_OUT = {
    "gemma4_assistant": "drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "drafts for another model, whose keys and values it reads",
}


def left_out(kind: str) -> str | None:
    """Why an architecture has no row: it is no decoder that stands alone."""
    return LEFT_OUT.get(kind) or ("encoder-decoder" if CONFIG_MAPPING[kind]().is_encoder_decoder else None)


def shrunk(kind: str) -> dict:
    """The settings of a configuration that are not its defaults, parts within it included."""
    return _shrunk(CONFIG_MAPPING[kind], SPECIAL.get(kind, {}))


def _shrunk(made_by: type, special: dict = {}) -> dict:  # noqa: B006
    fields = getattr(made_by, "__dataclass_fields__", {})
    settings = {name: small(name, field.default) for name, field in fields.items()}
    if "kv_lora_rank" in fields:  # latent attention: as many key heads as query heads
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings = {name: value for name, value in settings.items() if value != fields[name].default}
    for name in made_by.sub_configs:
        part = type(getattr(made_by(), name, None))
        if part is not type(None):
            settings[name] = {"model_type": part.model_type} | _shrunk(part, special.get(name, {}))
    return settings | {name: value for name, value in special.items() if name not in made_by.sub_configs}


def tiny_model(kind: str):
    """A random model of one architecture on the CPU in float32, in evaluation mode.

    Weights are drawn wide enough that every layer changes the logits.
    """
    config = CONFIG_MAPPING[kind](**shrunk(kind))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.15)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.generation_config = transformers.GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    return model
