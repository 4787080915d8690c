"""Tiny random models of the paper's two architectures, with tokenizers of the same family and a chat template.

As a script it writes one into a folder: `python tests/tiny_models.py llama FOLDER`.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from sdd_utils.data.rows import load_rows, text_of

LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA_WORDS += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_SPECIALS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
MISTRAL_TEMPLATE = (  # like many templates of this family it refuses a system turn
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]{% else %} {{ m['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZE |= {"num_hidden_layers": 14, "max_position_embeddings": 8192, "initializer_range": 0.15}


def _texts() -> list[str]:
    return [text_of(row) for row in load_rows("pydoc", split="train", rows=300)]


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Llama 3's word pattern; every text starts with one BOS token."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_WORDS), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=LLAMA_SPECIALS, initial_alphabet=alphabet)
    core.train_from_iterator(_texts(), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", core.token_to_id("<|begin_of_text|>"))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    wrapped.chat_template = LLAMA_TEMPLATE
    return wrapped


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """BPE over "▁" for spaces with bytes to fall back to, as SentencePiece models have it."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=MISTRAL_SPECIALS + fallback)
    core.train_from_iterator([text.replace(" ", " ▁") for text in _texts()], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = MISTRAL_TEMPLATE
    return wrapped


FAMILIES = {
    "llama": (llama_tokenizer, LlamaConfig, LlamaForCausalLM),
    "mistral": (mistral_tokenizer, MistralConfig, MistralForCausalLM),
}


def write(family: str, folder: Path) -> Path:
    """A random model of one family as a plain folder."""
    make_tokenizer, config, model = FAMILIES[family]
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    built = model(config(vocab_size=len(tokenizer), tie_word_embeddings=False, **SIZE, **ids))
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
