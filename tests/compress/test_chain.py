"""From a model and rows to a folder: on a tiny model, with real steps, real transformers and real lm-eval."""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdd_utils import ROOT
from sdd_utils.compress import __main__ as command
from sdd_utils.compress import chain, stages
from sdd_utils.compress.request import Request
from sdd_utils.compress.settings import learning_rate, settings_of, token_limits
from sdd_utils.data.arms import ARMS
from sdd_utils.models import store
from sdd_utils.steps import distillation, finetuning, training_rows

SMALL = {"rewrite_tokens": 12, "rewrite_attempts": 1, "tasks": {"facts": 4}, "chat_tasks": [], "answer_tokens": 4}


def quiet(_: str) -> None:
    """Says nothing."""


REQUEST = Request(model="model", data="mine.jsonl", cut="2")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer):
    """A folder with a tied model and forty rows, in which the command is called."""
    folder = tmp_path_factory.mktemp("prepared")
    tiny_llama(tokenizer, tie_word_embeddings=True).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(40)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def first(prepared):
    """What one call made there, and said."""
    said = []
    with contextlib.chdir(prepared):
        result = chain.compress(REQUEST, small(REQUEST), out=prepared / "out", say=said.append)
    return result, said


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    """A copy of the folder before any call."""
    for name in ("model", "mine.jsonl"):
        (shutil.copytree if (prepared / name).is_dir() else shutil.copy)(prepared / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made(first, prepared, tmp_path, monkeypatch):
    """A copy of the folder after a call: the folder, and what the call returned."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out", first[0]


def small(request):
    """Settings that fit the request, with little work."""
    settings = settings_of(request)
    return settings.__class__(**vars(settings) | SMALL)


def test_the_folder_holds_the_healed_model_and_its_papers(made, first, tokenizer):
    (out, result), (_, said) = made, first
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.num_hidden_layers == 3
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    work = chain.work_folder(out)
    adapter = work / "adapters" / "n2-self_data_ft"
    beside, _ = store.load_model(work / "checkpoints" / "n2", adapter=adapter)
    ids = torch.tensor([[5, 9, 30, 2, 60]])
    with torch.no_grad():
        gap = (model(ids).logits - beside(ids).logits).abs().max()
    assert 0 < float(gap) < 0.1  # weights in bfloat16 against the adapter beside them in float32
    card = (out / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert data["pipeline_tag"] == "text-generation"
    assert "pruned" in data["tags"]
    assert f"{result.scores['self_data_ft']['held_out']['gold_bits_per_byte']['value']:.3f}" in card
    assert {path.name for path in (out / "figures").iterdir()} == {"similarity.png", "scores.png"}
    assert not list(out.glob("manifest.json"))
    assert [line.split("]")[0] for line in said] == [f"[{i}/6" for i in range(1, 7)]


def test_bits_per_byte_of_held_out_rows_are_those_of_transformers(made, tokenizer):
    (out, result), settings = made, small(REQUEST)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    rows = stages.load_rows(settings.data_set, split="test", rows=settings.held_out, own_data=settings.own_data)
    expected = []
    for row in rows:
        turns = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        context, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, row["response"]))
        answer = [*answer, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        expected.append(float(nats) / torch.log(torch.tensor(2.0)).item() / len(row["response"].encode()))
    measured = result.scores["self_data_ft"]["held_out"]["gold_bits_per_byte"]
    assert measured["documents"] == pytest.approx(expected, rel=1e-4)


def test_a_second_call_finds_all_that_was_made(made, monkeypatch):
    out, result = made
    before = (out / "model.safetensors").read_bytes()
    makers = (store, "load_merged"), (finetuning.lora_training, "run"), (stages.similarity, "measure_similarity")
    for module, name in makers:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("made again"))
    again = chain.compress(REQUEST, small(REQUEST), out=out, say=quiet)
    assert again.scores == result.scores
    assert (out / "model.safetensors").read_bytes() == before


def test_what_fails_leaves_no_folder_and_a_rerun_goes_on(place, monkeypatch):
    settings, out, rewrite = small(REQUEST), place / "out", distillation.rewrite
    monkeypatch.setattr(distillation, "rewrite", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chain.compress(REQUEST, settings, out=out, say=quiet)
    assert not out.exists()
    monkeypatch.setattr(distillation, "rewrite", rewrite)
    monkeypatch.setattr(stages.pruning, "remove_block", lambda *_, **__: pytest.fail("cut again"))
    chain.compress(REQUEST, settings, out=out, say=quiet)
    assert (out / "recipe.yaml").is_file()


def test_a_recipe_makes_the_same_weights_again(made, tmp_path):
    out, _ = made
    request, settings, found = chain.read_recipe(out)
    chain.compress(request, settings, out=tmp_path / "again", block=found["block"], say=quiet)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_recipe_of_other_data_weights_or_another_block_is_refused(made, tmp_path):
    out, _ = made
    recipe = out / "recipe.yaml"
    request, settings, found = chain.read_recipe(recipe)
    with pytest.raises(ValueError, match="the recipe cut a block at layer 9"):
        chain.compress(request, settings, out=tmp_path / "again", block=found["block"] | {"start": 9}, say=quiet)
    (tmp_path / "other.jsonl").write_text((tmp_path / "mine.jsonl").read_text().replace("and", "plus"))
    with pytest.raises(ValueError, match="made of other rows"):
        chain.read_recipe(recipe, data="other.jsonl")
    recipe.write_text(recipe.read_text().replace(found["weights"], "0"))
    with pytest.raises(ValueError, match="made of other weights"):
        chain.read_recipe(recipe)
    for text in ("a: 1\n", "- 1\n", ": :"):
        (tmp_path / "no.yaml").write_text(text)
        with pytest.raises(ValueError, match="no recipe of a compression"):
            chain.read_recipe(tmp_path / "no.yaml")


def test_no_folder_of_this_machine_is_named_in_what_is_uploaded(made, tmp_path):
    request = Request(model=str(tmp_path / "model"), data=str(tmp_path / "mine.jsonl"), cut="2")
    chain.compress(request, small(request), out=tmp_path / "absolute", say=quiet)
    written = [path for path in (tmp_path / "absolute").rglob("*") if path.suffix in (".md", ".yaml", ".json")]
    assert len(written) > 4
    assert [path.name for path in written if str(tmp_path) in path.read_text()] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out/notes.txt", "holds notes.txt, which this command did not write"),
        ("out/figures/mine.png", "holds figures/mine.png, which this command did not write"),
    ],
)
def test_what_a_user_put_into_the_folder_stays(name, said, made, tmp_path):
    out, _ = made
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=said):
        chain.compress(REQUEST, small(REQUEST), out=out, say=quiet)
    assert (tmp_path / name).read_text() == "mine"


def test_another_request_does_not_replace_a_folder(made):
    out, _ = made
    other = Request(model="model", data="mine.jsonl", cut="1")
    with pytest.raises(FileExistsError, match="holds the answer to another request"):
        chain.compress(other, small(other), out=out, say=quiet)
    assert store.load_config(out).num_hidden_layers == 3


def test_other_settings_or_weights_of_the_same_name_do_not_replace_a_folder(made, tmp_path):
    out, _ = made
    settings = small(REQUEST)
    changed = settings.__class__(**vars(settings) | {"epochs": 2})
    with pytest.raises(FileExistsError, match="holds the answer to another request"):
        chain.compress(REQUEST, changed, out=out, say=quiet)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.model.norm.weight.data *= 2
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(FileExistsError, match="holds the answer to another request"):
        chain.compress(REQUEST, settings, out=out, say=quiet)


@pytest.mark.parametrize("checkpoint", ["n2", "n2-self_data_ft"])
def test_a_damaged_checkpoint_is_made_again(checkpoint, made, tmp_path):
    out, _ = made
    before = (out / "model.safetensors").read_bytes()
    shutil.rmtree(out)
    weights = chain.work_folder(out) / "checkpoints" / checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    chain.compress(REQUEST, small(REQUEST), out=out, say=quiet)
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["recipe.yaml", "result.json"])
@pytest.mark.parametrize("content", ["", "{}", "{", "[1]", "a: 1"])
def test_damaged_papers_of_a_folder_are_told(name, content, made):
    out, _ = made
    (out / name).write_text(content)
    with pytest.raises(OSError, match=f"{name} is damaged: remove "):
        chain.compress(REQUEST, small(REQUEST), out=out, say=quiet)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("settings", {"epochs": 0}, "epochs"),
        ("settings", {"arms": []}, "arms"),
        ("settings", {"arms": ["magic"]}, "arms"),
        ("settings", {"block_sizes": ["x"]}, "block_sizes"),
        ("settings", {"block_sizes": [2, 3]}, "block_sizes names 2, and a compression takes one"),
        ("settings", {"data_sets": {"own": "many"}}, "data_sets"),
        ("settings", {"learning_rate": "fast"}, "learning_rate"),
        ("settings", {"max_length": -5}, "max_length"),
        ("settings", {"held_out": 0}, "held_out"),
        ("settings", {"seed": "x"}, "seed"),
        ("request", {"columns": "x"}, "no recipe of a compression"),
        ("made", {"block": 5}, "no recipe of a compression"),
    ],
)
def test_a_recipe_that_was_edited_to_nonsense_is_refused_before_any_work(part, change, said, made):
    out, _ = made
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    recipe[part] |= change
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=said) as told:
        chain.read_recipe(out)
    assert len(str(told.value).splitlines()) == 1


def test_a_folder_that_was_being_replaced_comes_back(made, tmp_path):
    """As a kill between the two renames of `whole_folder` leaves it."""
    out, _ = made
    out.rename(tmp_path / ".out.unfinished-abc-former")
    shutil.copytree(tmp_path / "model", tmp_path / ".out.unfinished-abc")
    chain.compress(REQUEST, small(REQUEST), out=out, say=quiet)
    assert (out / "model.safetensors").is_file()
    assert not list(tmp_path.glob(".out*"))


def test_a_mended_chat_template_makes_the_model_anew(made, tmp_path):
    out, _ = made
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant: \n"))
    chain.compress(REQUEST, small(REQUEST), out=out, say=quiet)
    assert (out / "chat_template.jinja").read_text() == template.read_text()


def test_nothing_of_the_users_is_overwritten(place, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no compressed model"):
        chain.compress(REQUEST, small(REQUEST), out=tmp_path / "out", say=quiet)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_killed_command_goes_on(place):
    """SIGKILL while it writes texts, and once more while it scores, as a machine that is switched off."""
    texts, out = place / "out.work" / "generated" / "own-distilled.jsonl", place / "out"
    _kill_when(place, lambda line: texts.is_file() and texts.stat().st_size > 0)
    _kill_when(place, lambda line: line.startswith("[6/6]"))
    assert not out.exists()
    written = texts.read_bytes()
    done = subprocess.run(COMMAND, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "model.safetensors").is_file()
    assert texts.read_bytes() == written


COMMAND = [sys.executable, "-m", "sdd_utils.compress", "--model", "model", "--data", "mine.jsonl", "--cut", "2"]
COMMAND += ["--out", "out"]


def environment() -> dict:
    """Without what would make Python write at once."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}


def _kill_when(place, reached) -> None:
    """Start the command, and kill it as soon as a line, or what lies in the folder, says so."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(COMMAND, cwd=place, env=environment(), **pipes) as process:
        lines = [""]
        Thread(target=lambda: lines.extend(process.stdout), daemon=True).start()
        while process.poll() is None and not any(map(reached, [*lines])):
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("mine.jsonl/out", "nothing can be written to .*mine.jsonl: name another one by OUT="),
        ("taken", "taken.work is a file, where the work on taken belongs"),
        ("model", "is no compressed model: name another folder by OUT=…$"),  # not to be removed
    ],
)
def test_a_place_where_no_folder_can_be_made_is_told_at_once(out, said, place):
    (place / "taken.work").write_text("")
    with pytest.raises(OSError, match=said):
        chain.check_out(place / out)


def test_a_wrong_engine_is_told_before_any_work(place, monkeypatch, capsys):
    monkeypatch.setenv("SDD_ENGINE", "zz")
    monkeypatch.setattr(sys, "argv", ["compress", "--model", "model", "--data", "mine.jsonl", "--dry-run"])
    assert command.main() == 2
    assert "SDD_ENGINE is 'zz': set it to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--model", ""], "no model is named: say MODEL=…"),
        (["--data", ""], "no data is named: say DATA=…"),
        (["--arm", "magic"], "arm 'magic' is unknown: use one of sft, self_data_ft"),
        (["--rows", "99"], "99 rows of mine.jsonl cannot be had: ask for 9 to 38, or 0 for all"),
        (["--rows", "8"], "8 rows of mine.jsonl cannot be had: ask for 9 to 38"),
        (["--rows", "many"], "rows 'many' is no whole number: say, as an example, ROWS=100"),
        (["--rows", ""], "rows '' is no whole number"),
        (["--seed", "-1"], "seed -1 is impossible: use 0 to 4294967295"),
        (["--data", "few.jsonl"], "few.jsonl has 5 training rows, and healing needs 9: add some"),
        (["--data", "one.jsonl"], "data 'one.jsonl': has no test rows"),
        (["--rows", "-1"], "-1 rows of mine.jsonl cannot be had"),
        (["--cut", "5"], "a model of 5 layers allows 1 to 4"),
        (["--data", "nowhere.csv"], "the file 'nowhere.csv' does not exist"),
        (["--model", "nowhere"], "model 'nowhere' does not exist"),
        (["--recipe", "nowhere"], "recipe 'nowhere' does not exist"),
        (["--response", "reply"], "has no column 'reply' but question, answer: name one of them by RESPONSE=…"),
        (["--data", "c4"], "data 'c4' is running text"),
        (["--recipe", "out", "--cut", "2"], "RECIPE says all but OUT, MODEL and DATA: leave CUT out"),
    ],
)
def test_wrong_input_is_one_sentence(changed, said, place, monkeypatch, capsys):
    lines = (place / "mine.jsonl").read_text().splitlines(keepends=True)
    for name, count in {"few.jsonl": 6, "one.jsonl": 1}.items():
        (place / name).write_text("".join(lines[:count]))
    given = ["--model", "model", "--data", "mine.jsonl", "--dry-run", *changed]
    monkeypatch.setattr(sys, "argv", ["compress", *given])
    assert command.main() == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_dry_run_makes_nothing(place, tmp_path, monkeypatch, capsys):
    given = ["--model", "model", "--data", "mine.jsonl", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["compress", *given, "--dry-run"])
    assert command.main() == 0
    shown = capsys.readouterr().out
    assert "minutes" in shown
    assert "fine-tuning" in shown
    assert not list(tmp_path.glob("out*"))


def test_settings_follow_the_model_and_the_rows(tokenizer):
    assert [learning_rate(int(size)) for size in (1.3e8, 5e8, 8e9)] == [5e-4, 3e-4, 1e-4]
    rows = [{"instruction": "q" * 50, "context": "", "response": "r" * length} for length in (100, 100, 100, 3000)]
    assert token_limits(tokenizer, rows, context=4096) == {"rewrite_tokens": 512, "max_length": 2048}
    # One token a byte: 100 and the end; with the template's 48 and the question's 50.
    whole = len(training_rows.encode(tokenizer, rows[0], rows[0]["response"])["input_ids"])
    assert token_limits(tokenizer, rows[:3], context=4096) == {
        "rewrite_tokens": 136, "max_length": 8 * math.ceil(whole * 4 / 3 / 8),
    }  # fmt: skip
    with pytest.raises(ValueError, match="every row is longer than 2048 tokens"):
        token_limits(tokenizer, rows[3:], context=4096)


def test_arms_are_known_to_need_what_they_read():
    rows = [{"id": "a", "response": "r"}]
    text = {"a": {"response": "w", "attempt": 1, "source": "distilled", "input_ids": [1]}}
    for arm, function in ARMS.items():
        needed = {stages.WRITTEN_FOR[arm]} if arm in stages.WRITTEN_FOR else {"text"} & {arm.partition("_")[0]}
        function(rows, dict.fromkeys(needed, text))
        for name in needed:
            with pytest.raises(KeyError, match=name):
                function(rows, dict.fromkeys(needed - {name}, text))


def test_answers_that_the_original_left_empty_do_not_count():
    answers = {"original": [{"text": ""}, {"text": "yes"}], "no_ft": [{"text": ""}, {"text": "no, never"}]}
    settings = SimpleNamespace(encoder="all-MiniLM-L6-v2", model="silent")
    (found,) = stages.answer_similarities(settings, answers).values()
    assert found.shape == (1,)
    assert found[0] < 0.99
    silent = {name: rows[:1] for name, rows in answers.items()}
    with pytest.raises(ValueError, match="answers no held-out question"):
        stages.answer_similarities(settings, silent)


@pytest.mark.parametrize("arm", ["sft", "logit_kd", "text_kd", "on_policy"])
def test_every_kind_of_arm_heals_and_claims_no_rewrites(arm, place):
    request = Request(model="model", data="mine.jsonl", cut="1", arm=arm)
    result = chain.compress(request, small(request), out=place / "out", say=quiet)
    assert set(result.scores) == {"original", "no_ft", arm}
    assert not result.rewrites
    card = (place / "out" / "README.md").read_text()
    assert "rewrote" not in card
    assert "self-data-distillation" not in card
