"""Tiny random models that read masks, positions or caches in ways of their own, and plain passes to compare with."""

import torch
import transformers as T
from torch import Tensor

VOCABULARY, END = 258, 257
SIZE = {"vocab_size": VOCABULARY, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": END}
DEEP = {"intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}
GQA = SIZE | DEEP | {"num_key_value_heads": 2}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "eos_token_id": END}

CONFIGS = {
    "learned positions": lambda: T.GPT2Config(**GPT2, **NO_DROPOUT),
    "local layers": lambda: T.GPTNeoConfig(
        **SIZE, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=8
    ),
    "local layers of long windows": lambda: T.GPTNeoConfig(
        **SIZE, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=64
    ),
    "sliding windows": lambda: T.MistralConfig(**GQA, sliding_window=8),
    "attention of its own": lambda: T.StableLmConfig(**GQA),
    "masks of its own": lambda: T.FalconConfig(**SIZE, num_hidden_layers=3, num_attention_heads=4),
    "slopes for positions": lambda: T.BloomConfig(**SIZE, n_layer=3, n_head=4),
    "sinks": lambda: T.GptOssConfig(
        **GQA, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "convolutions": lambda: T.Lfm2Config(
        **GQA, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False
    ),
    "recurrent layers": lambda: T.RecurrentGemmaConfig(
        **SIZE, lru_width=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, attention_window_size=8
    ),
    "experts": lambda: T.MixtralConfig(**GQA, num_local_experts=4, sliding_window=None),
}  # fmt: skip


def build(kind: str):
    """A model whose weights are large enough for its layers to do something."""
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.data = 0.15 * noise if parameter.dim() > 1 else parameter.data + 0.05 * noise
    return model.eval()


@torch.no_grad()
def plain_log_probs(model, row: list[int]) -> Tensor:
    """(tokens, vocabulary) of one pass over one row."""
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0].log_softmax(dim=-1)


def plain_continuation(model, row: list[int], *, tokens: int) -> list[int]:
    """Greedy tokens, each from a pass over all before it, up to the end token."""
    new = []
    while len(new) < tokens and new[-1:] != [END]:
        new.append(int(plain_log_probs(model, row + new)[-1].argmax()))
    return new
