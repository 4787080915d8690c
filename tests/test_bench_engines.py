"""The engines beside which distillation is timed: what is asked and answered, and what counts as the same answer."""

import json
import sys
import time

import gguf
import pytest
import torch
import transformers

from benchmarks import compare, distillation_engines
from benchmarks.engines import gguf_file, transformers_batch
from sdd_utils import ROOT
from sdd_utils.models import store

FAKE = """
import os
from benchmarks.engines import exchange

def start(*, model, ends, rows, longest, threads, dtype, folder):
    print("engines talk")
    os.write(1, b"and their C++ as well")
    return lambda prompts, most: [[*reversed(prompt)][:most] + ends for prompt in prompts]

exchange.serve(start)
open("ENDED", "w").close()
"""


@pytest.fixture
def only(monkeypatch, tmp_path):
    """A function that leaves one engine in the stage, an interpreter that runs a script whatever it is asked to run."""

    def keep(script: str) -> None:
        python = tmp_path / "python"
        (tmp_path / "engine.py").write_text(script.replace("ENDED", str(tmp_path / "ended")))
        python.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {tmp_path / 'engine.py'}\n")
        python.chmod(0o755)
        monkeypatch.setattr(distillation_engines, "ENGINES", {"fake": ("fake", None)})
        monkeypatch.setattr(distillation_engines, "_python", lambda environment: python)
        monkeypatch.setattr(distillation_engines, "PEERS", {"fake": distillation_engines._peer("fake")})
        monkeypatch.setattr(distillation_engines, "WORK", tmp_path / "work")

    return keep


def prepared(model_folder, tmp_path, **changes) -> dict:
    return distillation_engines.prepare(str(model_folder), scratch=tmp_path, **distillation_engines.SMALL | changes)


def test_an_engine_is_asked_for_every_prompt_and_its_answers_keep_their_order(only, model_folder, tmp_path):
    only(FAKE)
    state = prepared(model_folder, tmp_path)
    (peer, _), most = distillation_engines.PEERS["fake"], distillation_engines.SMALL["max_new_tokens"]
    assert len(state["prompts"]) == distillation_engines.SMALL["rows"]
    assert peer(state) == {id_: ids[: -most - 1 : -1] + state["ends"] for id_, ids in state["prompts"].items()}
    assert prepared(model_folder, tmp_path)["engines"] is state["engines"], "started once"


def test_engines_end_with_the_last_state_that_has_them(only, model_folder, tmp_path):
    only(FAKE)
    state = prepared(model_folder, tmp_path)
    again = prepared(model_folder, tmp_path)
    del state
    distillation_engines.PEERS["fake"][0](again)
    assert not (tmp_path / "ended").exists()
    del again
    for _ in range(100):
        if (tmp_path / "ended").exists():
            return
        time.sleep(0.1)
    pytest.fail("the engine still runs")


@pytest.mark.parametrize(
    "script",
    ["raise SystemExit(3)", FAKE.replace("return", "return 1 / 0 if 'fails' else"), FAKE.replace("[*rev", "[*rew")],
)
def test_an_engine_that_fails_is_left_out_with_a_sentence(script, only, model_folder, tmp_path, capsys):
    only(script)
    state = prepared(model_folder, tmp_path)
    assert not state["engines"]
    assert not distillation_engines.PEERS
    assert "fake is left out: its process ended, see " in capsys.readouterr().out


def test_an_engine_without_its_environment_is_left_out_with_a_sentence(
    only, model_folder, tmp_path, capsys, monkeypatch
):
    only(FAKE)
    monkeypatch.setattr(distillation_engines, "PEERS", {})
    assert not prepared(model_folder, tmp_path)["engines"]
    assert capsys.readouterr().out == "fake is left out: run make bench-engines\n"


def test_generate_batch_and_our_loop_come_to_the_same_answer(monkeypatch, model_folder, tmp_path):
    """In this process: the peer's own function instead of the one that would start another interpreter."""

    def here(module, environment, settings, *, log):
        return transformers_batch.start(**settings)

    name = "transformers generate_batch"
    monkeypatch.setattr(distillation_engines, "_start", here)
    monkeypatch.setattr(distillation_engines, "ENGINES", {name: distillation_engines.ENGINES[name]})
    monkeypatch.setattr(distillation_engines, "PEERS", {name: distillation_engines._peer(name)})
    monkeypatch.setattr(distillation_engines, "WORK", tmp_path)
    (entry,) = compare.compare(distillation_engines, size=distillation_engines.SMALL, model=str(model_folder))
    assert (entry["peer"], entry["equal"], entry["ratio_memory"]) == (name, True, None), entry
    assert " 0 texts differ" in entry["note"]


@pytest.mark.parametrize("wrong", ["another token", "goes on behind its end", "stops early"])
def test_a_wrong_text_is_seen(wrong, only, model_folder, tmp_path):
    only(FAKE)
    state = prepared(model_folder, tmp_path)
    right = distillation_engines.ours(state)
    assert distillation_engines.same(state, right, right)[0]
    (id_, tokens), end = next(iter(right.items())), state["ends"][0]
    spoiled = {
        "another token": [(token + 1) % 200 for token in tokens],
        "goes on behind its end": [*tokens[:-2], end, end],
        "stops early": tokens[:-1],
    }
    assert not distillation_engines.same(state, right, right | {id_: spoiled[wrong]})[0]


def test_likelihoods_are_those_of_plain_passes(only, model_folder, tmp_path):
    only(FAKE)
    state = prepared(model_folder, tmp_path)
    answer = distillation_engines.ours(state)
    taken, below = distillation_engines._per_token(state, answer)
    losses = []
    model, _ = store.load_model(str(model_folder))
    for id_, prompt in state["prompts"].items():
        labels = torch.tensor([[-100] * len(prompt) + answer[id_]])
        losses.append(model(torch.tensor([prompt + answer[id_]]), labels=labels).loss.item() * len(answer[id_]))
    assert taken == pytest.approx(-sum(losses) / distillation_engines.amount(answer), rel=1e-4)
    assert below == pytest.approx(0, abs=1e-5), "greedy in float32"


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_written_gguf_file_holds_the_models_weights(kind, tied, tokenizer, tmp_path):
    """transformers reads it by its own table of names, and turns Llama's heads back by its own code."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": len(tokenizer) + 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied, "rms_norm_eps": 1e-5}
    config = getattr(transformers, f"{kind}Config")(
        **shape, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    file = gguf_file.write(str(tmp_path / "model"), tmp_path / "model.gguf", ends=[3, 5])
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.bfloat16)
    assert type(read) is type(model)
    found = read.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    prompt = torch.tensor([[7, 8, 9, 10]])
    assert torch.equal(read(prompt).logits, model(prompt).logits), "the configuration is the same"
    fields = gguf.GGUFReader(str(file)).fields
    assert [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot")] == [3, 5]
    assert len(fields["tokenizer.ggml.tokens"].contents()) == config.vocab_size


def test_another_kind_of_model_is_refused(tmp_path):
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a GGUF file is written of llama and qwen2 models, not of gpt2"):
        gguf_file.write(str(tmp_path), tmp_path / "model.gguf", ends=[3])
