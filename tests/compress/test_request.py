"""A cut in any of its three forms is a number of layers; columns are known by their names."""

import json

import pytest
from conftest import tiny_llama
from transformers import Qwen3MoeConfig

from sdd_utils.compress.request import (
    Request,
    chosen_columns,
    data_set_of,
    layers_to_cut,
    model_of,
    parameters_of,
)


@pytest.fixture
def config(tokenizer):
    return tiny_llama(tokenizer, layers=10).config


def parameters(tokenizer, layers: int) -> int:
    return tiny_llama(tokenizer, layers=layers).num_parameters()


@pytest.mark.parametrize("layers", [1, 4, 9])
def test_a_cut_in_layers_a_share_and_a_size_are_one(layers, config, tokenizer):
    whole, left = parameters(tokenizer, 10), parameters(tokenizer, 10 - layers)
    assert layers_to_cut(str(layers), config) == layers
    assert layers_to_cut(f"{100 * (1 - left / whole):.2f}%", config) == layers
    assert layers_to_cut(f"{2 * left / 1e6:.6f}MB", config) == layers
    assert layers_to_cut(f"{2 * left / 1e9:.9f} gb", config) == layers


def test_a_share_takes_the_nearest_block_and_a_size_never_takes_more(config, tokenizer):
    whole, one, two = (parameters(tokenizer, 10 - n) for n in (0, 1, 2))
    nearly_two = 1 - (0.4 * one + 0.6 * two) / whole
    assert layers_to_cut(f"{100 * nearly_two}%", config) == 2
    assert layers_to_cut(f"{2 * (0.6 * one + 0.4 * two) / 1e6}MB", config) == 2


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ("0", "use a number of layers (4), a share"),
        ("", "use a number of layers (4), a share"),
        ("-1", "use a number of layers (4), a share"),
        ("some", "use a number of layers (4), a share"),
        ("2.5", "allows 1 to 9"),
        ("10", "allows 1 to 9"),
        ("99%", "whole layers of this model are"),
        ("1%", "whole layers of this model are"),
        ("6GB", "its weights take"),
        ("0.001MB", "its weights take"),
    ],
)
def test_an_impossible_cut_is_one_sentence(cut, said, config):
    with pytest.raises(ValueError, match=r"^cut ") as error:
        layers_to_cut(cut, config)
    assert said in str(error.value)
    assert repr(cut) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["instruction", "input", "output"], {"instruction": "instruction", "response": "output", "context": "input"}),
        (["question", "answer"], {"instruction": "question", "response": "answer"}),
        (["id", "question", "response", "answer"],
         {"instruction": "question", "response": "response", "answer": "answer"}),
        (["instruction", "context", "response", "category"],
         {"instruction": "instruction", "context": "context", "response": "response"}),
        (["input", "output"], {"instruction": "input", "response": "output"}),
        (["messages"], {"instruction": "messages", "response": "messages"}),
        (["prompt", "completion"], {"instruction": "prompt", "response": "completion"}),
    ],
)  # fmt: skip
def test_columns_are_known_by_their_names(columns, expected):
    assert chosen_columns(columns, given={}, where="a file") == expected


def test_what_is_given_stays_and_what_is_not_is_known_by_its_name():
    columns = ["frage", "context", "answer"]
    chosen = chosen_columns(columns, given={"instruction": "frage"}, where="a file")
    assert chosen == {"instruction": "frage", "response": "answer", "context": "context"}
    without = chosen_columns(columns, given={"instruction": "frage", "context": "-"}, where="a file")
    assert without == {"instruction": "frage", "response": "answer"}


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        (["frage", "antwort"], {"instruction": "frage"}, "none is known as the response: name it by RESPONSE=…"),
        (["question", "answer"], {"response": "reply"}, "no column 'reply' but question, answer: name one of them"),
        (["question", "answer"], {"response": "-"}, "none is known as the response"),
        ([], {}, "has the columns none, and none is known as the instruction"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_known_is_one_sentence(columns, given, said):
    with pytest.raises(ValueError, match="^data 'a file' has") as error:
        chosen_columns(columns, given=given, where="a file")
    assert said in str(error.value)


def test_a_size_is_kept_whichever_block_goes():
    """Of layers of unlike sizes the smallest block may be the one of least distance."""
    unlike = Qwen3MoeConfig(
        hidden_size=16, intermediate_size=8, moe_intermediate_size=64, num_experts=4, num_hidden_layers=6,
        vocab_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=8, decoder_sparse_step=2,
    )  # fmt: skip
    layers, whole = parameters_of(unlike)
    assert len(set(layers)) == 2
    for wanted in range(1, 6):
        blocks = [sum(layers[start : start + wanted]) for start in range(7 - wanted)]
        assert layers_to_cut(f"{2 * (whole - min(blocks)) / 1e6}MB", unlike) == wanted
        if wanted < 5 and min(blocks) < max(blocks):  # enough for some of these blocks only
            assert layers_to_cut(f"{2 * (whole - max(blocks)) / 1e6}MB", unlike) == wanted + 1


def test_paths_start_where_the_command_is_called(tmp_path, monkeypatch, model_folder):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "a?", "answer": "b"}) + "\n")
    (tmp_path / "model").symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    request = Request(model="model", data="mine.jsonl")
    assert model_of(request) == str(tmp_path / "model")  # a link to a file in a cache keeps its own name
    name, own_data = data_set_of(request)
    assert own_data[name] == {
        "source": str(tmp_path / "mine.jsonl"), "instruction": "question", "response": "answer",
    }  # fmt: skip
    assert data_set_of(Request(model="model", data="pydoc")) == ("pydoc", {})
    assert model_of(Request(model="smollm2-135m-instruct", data="")) == "smollm2-135m-instruct"
