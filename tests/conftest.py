"""A tiny random Llama with a byte-level tokenizer and a chat template: everything real but the size."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests build their inputs on the CPU
os.environ["SDD_DTYPE"] = "float32"  # references are compared closely; tests that want another precision set it
os.environ["SDD_ENGINE"] = "transformers"  # tests/test_vllm.py has the other one

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def pytest_collection_modifyitems(items):
    """Whole studies first: of the files that processes share, theirs take longest."""
    items.sort(key=lambda item: item.path.parent.name != "sweep")


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte; the padding token *is* the end token, as in many instruct models."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
    )
    wrapped.chat_template, wrapped.padding_side = CHAT_TEMPLATE, "left"
    return wrapped


def tiny_llama(tokenizer, *, layers: int = 5, **changes):
    """A random Llama whose layers do something: default initialisation would leave them near the identity."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model(tokenizer):
    return tiny_llama(tokenizer)


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """The tiny model as a folder that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hub():
    """Address of a hub (or a mirror) that tests may read from."""
    address = os.environ.get("SDD_TEST_HUB")
    if not address:
        pytest.skip("set SDD_TEST_HUB to the address of a hub or a mirror to run this test")
    return address
