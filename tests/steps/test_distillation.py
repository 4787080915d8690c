"""Extraction, conditional selection, and a distilled set that a kill cannot spoil."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sdd_utils import ROOT
from sdd_utils.base.files import digest
from sdd_utils.engine import decoding, generation
from sdd_utils.models import chat_format, store
from sdd_utils.steps import answer_check, distillation

ROWS = [
    {
        "id": f"r{i}",
        "instruction": f"What is {i} + {i}?" * (1 + i % 3),
        "context": "",
        "response": str(2 * i),
        "answer": "",
    }
    for i in range(7)
]
SETTINGS = {"max_new_tokens": 8, "batch_size": 3, "temperature": 1.0, "top_p": 0.9, "top_k": 0, "seed": 1}


MATH = {"id": "m", "instruction": "?", "context": "", "response": "3 + 4 = 7\n#### 7", "answer": "7"}


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("It is 7.", "stop", "kept"),
        ("7.0", "stop", "kept"),
        ("It is 7.", "length", "truncated"),
        ("", "too long", "prompt too long"),
        ("It is 8.", "stop", "wrong answer"),
        ("It is seven.", "stop", "no answer"),
        ("\n", "stop", "empty"),
        ("As the Reference Answer says, 7", "stop", "banned phrase"),
    ],
)
def test_conditional_selection(text, finish, reason):
    response, given_reason = answer_check.select(MATH, text=text, finish=finish)
    assert given_reason == reason
    assert response == (text if reason == "kept" else MATH["response"])


BOXED = MATH | {"response": "3 + 4 = 7, so \\boxed{7}"}
KINDS = (MATH, BOXED, MATH | {"answer": ""}, MATH | {"answer": "seven", "response": "seven, I think"})


@pytest.mark.parametrize("row", KINDS)
def test_the_prompt_shows_context_instruction_and_response_and_no_word_that_is_banned(row):
    messages = distillation.rewrite_messages(row | {"context": "the context", "instruction": "How many are 3 and 4?"})
    question, answer, again = (message["content"] for message in messages)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert "the context" in question
    assert "How many are 3 and 4?" in question
    assert answer == row["response"]
    for text in (question, again, distillation.answer_messages(row)[0]["content"]):
        assert not any(phrase in text.lower() for phrase in answer_check.BANNED_PHRASES)


def test_the_thinking_of_a_response_is_not_shown():
    thought = MATH | {"response": "<think>3 and 4 are added</think>\n\n3 + 4 = 7\n#### 7"}
    assert distillation.rewrite_messages(thought)[1]["content"] == MATH["response"]


@pytest.mark.parametrize("row", KINDS)
def test_an_answer_of_its_own_is_asked_without_the_response_and_checked_like_a_rewrite(row):
    asking = row | {"context": "the context", "instruction": "How many are 3 and 4?"}
    (asked,) = (message["content"] for message in distillation.answer_messages(asking))
    assert "the context" in asked
    assert asking["instruction"] in asked
    assert asking["response"] not in asked
    ending = answer_check.ENDINGS.get(answer_check.check_of(asking), "")
    assert asked.endswith(ending)
    assert distillation.rewrite_messages(asking)[-1]["content"].endswith(ending)


def rewrite(model_folder, path, **changes):
    return distillation.rewrite(model_folder, ROWS, path=path, **SETTINGS | changes)


def test_answers_without_the_reference_are_another_set_with_the_same_rows(model_folder, tmp_path):
    answers = rewrite(model_folder, tmp_path / "answers.jsonl", which="self_generated")
    rewrites = rewrite(model_folder, tmp_path / "rewrites.jsonl")
    assert [row["id"] for row in answers] == [row["id"] for row in rewrites] == [row["id"] for row in ROWS]
    assert [row["text"] for row in answers] != [row["text"] for row in rewrites]


def test_a_kill_at_any_row_gives_the_same_set(model_folder, tmp_path):
    whole = rewrite(model_folder, tmp_path / "whole.jsonl")
    assert [row["id"] for row in whole] == [row["id"] for row in ROWS]
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for cut in range(len(lines)):
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_text("".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])  # killed in the middle of a line
        assert rewrite(model_folder, path) == whole


@pytest.fixture
def by_company(monkeypatch):
    """Texts that say beside which rows they were made, as in bfloat16 they do by their rounding; the calls' prompts."""
    calls = []

    def decode(model, prompts, *, batch_size, max_new_tokens, **_):
        calls.append(len(prompts))
        company = [byte % 90 for byte in hashlib.sha256(repr(sorted(prompts.values())).encode()).digest()[:6]]
        yield from ((id_, company) for id_ in sorted(prompts, reverse=True))

    monkeypatch.setattr(decoding, "engine_for", lambda model, *, batch_size: (decode, batch_size))
    monkeypatch.setattr(generation, "GROUP", 2)
    return calls


MANY = [ROWS[0] | {"id": f"m{i:02}", "instruction": f"Count to {i}."} for i in range(11)]


def test_a_resumed_set_is_made_in_the_groups_of_the_uninterrupted_one(model_folder, tmp_path, by_company):
    settings = SETTINGS | {"batch_size": 2}
    whole = distillation.rewrite(model_folder, MANY, path=tmp_path / "whole.jsonl", **settings)
    assert by_company == [4, 4, 3]
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len({row["text"] for row in whole}) == 3
    for cut, groups in {1: [4, 4, 3], 4: [4, 3], 6: [4, 3], 10: [3]}.items():
        by_company.clear()
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_text("".join(lines[:cut]) + lines[cut][:9])
        assert distillation.rewrite(model_folder, MANY, path=path, **settings) == whole
        assert by_company == groups
        assert path.read_text().startswith("".join(lines[:cut]))


def test_a_set_cut_off_twice_and_one_that_grows(model_folder, tmp_path, by_company):
    settings, path = SETTINGS | {"batch_size": 2}, tmp_path / "set.jsonl"
    distillation.rewrite(model_folder, MANY[:5], path=path, **settings)
    by_company.clear()
    grown = distillation.rewrite(model_folder, MANY, path=path, **settings)
    assert by_company == [4, 2]  # the six new rows only
    lines = path.read_text().splitlines(keepends=True)
    for cut in (10, 6):
        path.write_text("".join(lines[:cut]))
        assert distillation.rewrite(model_folder, MANY, path=path, **settings) == grown
    path.write_text("".join(lines[:6]))
    by_company.clear()
    distillation.rewrite(model_folder, MANY, path=path, **settings | {"batch_size": 3})
    assert by_company == [5]  # other batches: there is nothing to go on with, only rows to add


WORD_PROBLEMS = [MATH | {"id": f"p{i:02}", "instruction": f"Problem {i}?"} for i in range(11)]


@pytest.fixture(params=["transformers", "vllm"])
def by_seed(request, monkeypatch):
    """Texts of either engine that a row's id and seed decide; (seed, ids) of every call.

    With transformers the rows of a group decide as well, as in bfloat16. `too long` are the ids that get no text.
    """
    calls, too_long = [], []

    def made(prompts, seed, company=""):
        calls.append((seed, [*prompts]))
        for id_ in sorted(prompts, reverse=True):
            right = digest(id_, seed, company)[0] in "01234"
            text, finish = f"{digest(company)} so {7 if right else 8}", "stop"
            if id_ in too_long:
                text, finish = "", "too long"
            yield {"id": id_, "text": text, "finish": finish, "n_tokens": 3, "end_token": 0, "seed": seed}

    def by_transformers(model, tokenizer, prompts, *, seed, **_):
        yield from made(prompts, seed, [*prompts])

    def by_vllm(model, prompts, *, path, seed, **_):
        path.touch()
        return [*made(prompts, seed)]

    monkeypatch.setattr(generation, "GROUP", 2)
    monkeypatch.setattr(generation, "generate_texts", by_transformers)
    monkeypatch.setattr(store, "load_model", lambda *_, **__: (None, None))
    monkeypatch.setattr(generation.vllm_client, "generate_texts", by_vllm)
    if request.param == "vllm":
        monkeypatch.setattr(generation, "engine", lambda: "vllm 1")
    return SimpleNamespace(calls=calls, too_long=too_long)


def attempted(model_folder, path, attempts, rows=WORD_PROBLEMS, **changes):
    settings = SETTINGS | {"batch_size": 2, "attempts": attempts} | changes
    return distillation.rewrite(model_folder, rows, path=path, **settings)


@pytest.mark.parametrize("which", ["distilled", "self_generated"])
def test_only_rejected_rows_are_written_again_each_time_with_another_seed(model_folder, tmp_path, by_seed, which):
    written = attempted(model_folder, tmp_path / "set.jsonl", 3, which=which)
    asked = {}
    for seed, ids in by_seed.calls:
        asked.setdefault(seed, []).extend(ids)
    assert len(asked) == 3
    texts, open_rows = iter(written), [row["id"] for row in WORD_PROBLEMS]
    for seed, ids in asked.items():
        assert ids == open_rows
        attempt = [next(texts) for _ in ids]
        assert [(text["id"], text["seed"]) for text in attempt] == [(id_, seed) for id_ in ids]
        open_rows = [text["id"] for text in attempt if not text["text"].endswith("7")]
    assert [*texts] == []
    judged = distillation.judge(WORD_PROBLEMS, written)
    assert [row["id"] for row in judged if row["source"] == "original"] == open_rows
    assert {row["attempt"] for row in judged if row["source"] == "original"} <= {3}
    for row in judged:
        (text,) = (text for text in written if (text["id"], text["seed"]) == (row["id"], row["seed"]))
        assert row["rewrite"].endswith(text["text"])
        assert [*asked].index(row["seed"]) + 1 == row["attempt"]


def test_a_kill_within_any_attempt_gives_the_same_set(model_folder, tmp_path, by_seed):
    whole = attempted(model_folder, tmp_path / "whole.jsonl", 3)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(whole) > len(WORD_PROBLEMS) + 2
    for cut in range(len(lines)):
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_text("".join(lines[:cut]) + lines[cut][:9])
        assert attempted(model_folder, path, 3) == whole
        assert path.read_text().startswith("".join(lines[:cut]))


def test_more_attempts_and_more_rows_only_add(model_folder, tmp_path, by_seed):
    path, few = tmp_path / "set.jsonl", WORD_PROBLEMS[:5]
    once = attempted(model_folder, path, 1, few)
    before = path.read_text()
    thrice = attempted(model_folder, path, 3, few)
    assert thrice[: len(few)] == once
    assert path.read_text().startswith(before)
    before = path.read_text()
    kept = {row["id"]: row for row in distillation.judge(few, thrice) if row["source"] == "distilled"}
    assert kept
    grown = distillation.judge(WORD_PROBLEMS, attempted(model_folder, path, 3))
    assert path.read_text().startswith(before)
    assert {row["id"]: row for row in grown if row["id"] in kept} == kept
    by_seed.calls.clear()
    assert attempted(model_folder, path, 1, few) == once
    assert by_seed.calls == []


def test_a_prompt_that_is_too_long_is_not_tried_again(model_folder, tmp_path, by_seed):
    by_seed.too_long.append("p03")
    written = attempted(model_folder, tmp_path / "set.jsonl", 4)
    assert [text["id"] for text in written].count("p03") == 1
    (row,) = (row for row in distillation.judge(WORD_PROBLEMS, written) if row["id"] == "p03")
    assert (row["reason"], row["attempt"], row["response"]) == ("prompt too long", 1, MATH["response"])


def test_the_first_attempt_has_the_seed_of_the_study_and_no_two_are_alike():
    seeds = [distillation.attempt_seed(seed, attempt) for seed in range(20) for attempt in range(1, 6)]
    assert seeds[::5] == [*range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_first_attempt_that_is_kept_counts_and_else_the_last():
    def output(id_, text, seed):
        return {"id": id_, "text": text, "finish": "stop", "n_tokens": seed, "seed": seed}

    rows = [MATH | {"id": id_} for id_ in "abc"]
    written = [output("a", "8", 1), output("b", "7", 1), output("c", "8", 1)]
    written += [output("a", "so 7", 2), output("c", "seven", 2), output("a", "thus 7", 3), output("c", "", 3)]
    judged = distillation.judge(rows, written)
    told = [(row["reason"], row["attempt"], row["seed"]) for row in judged]
    assert told == [("kept", 2, 2), ("kept", 1, 1), ("empty", 3, 3)]
    assert judged[0]["response"].endswith("so 7")
    assert judged[2]["response"] == MATH["response"]
    counted = distillation.statistics(rows, judged)["attempts"]
    assert counted == [{"rewritten": 3, "kept": 1}, {"rewritten": 2, "kept": 1}, {"rewritten": 1, "kept": 0}]


def test_finished_rows_are_not_generated_again(model_folder, tmp_path, monkeypatch):
    whole = rewrite(model_folder, tmp_path / "set.jsonl")
    monkeypatch.setattr(store, "load_model", lambda *_, **__: pytest.fail("loaded again"))
    assert rewrite(model_folder, tmp_path / "set.jsonl", batch_size=1) == whole  # no setting of the sampling


@pytest.mark.parametrize("change", ["seed", "temperature", "dtype", "version", "prompt", "weights", "ends"])
def test_a_text_depends_on_prompt_weights_sampling_precision_and_version(model_folder, tmp_path, monkeypatch, change):
    prompts, sampling = {"a": "one", "b": "two"}, {name: SETTINGS[name] for name in SETTINGS if name != "batch_size"}
    before, folder = generation.text_keys(model_folder, prompts, **sampling), model_folder
    if change in sampling:
        sampling[change] = 2
    elif change == "dtype":
        monkeypatch.setenv("SDD_DTYPE", "bfloat16")
    elif change == "version":
        monkeypatch.setattr(generation, "VERSION", generation.VERSION + 1)
    elif change == "prompt":
        prompts = {"a": "one!", "b": "two!"}
    else:
        folder = shutil.copytree(model_folder, tmp_path / "other")
    if change == "ends":
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    elif change == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[::-1])
    after = generation.text_keys(folder, prompts, **sampling)
    assert all(before[id_] != after[id_] for id_ in prompts)


def test_a_row_that_is_added_or_changed_leaves_the_others(model_folder, tmp_path):
    path = tmp_path / "set.jsonl"
    distillation.rewrite(model_folder, ROWS[:3], path=path, **SETTINGS)
    before = path.read_text()
    changed = [ROWS[0] | {"response": "another"}, *ROWS[1:4]]
    distillation.rewrite(model_folder, changed, path=path, **SETTINGS)
    assert path.read_text().startswith(before)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()[3:]] == ["r3", "r0"]  # longest first


COUNT = """
import json, sys
from pathlib import Path
from sdd_utils.engine import decoding
from sdd_utils.steps import distillation

rows, settings, folder, path = json.loads(sys.argv[1])
plain, tokens = decoding.decode, []

def counting(*arguments, **settings):
    for id_, made in plain(*arguments, **settings):
        tokens.append(len(made))
        yield id_, made

decoding.decode = counting
judged = distillation.judge(rows, distillation.rewrite(folder, rows, path=Path(path), **settings))
print(json.dumps({"tokens": sum(tokens), "reasons": sorted({row["reason"] for row in judged})}))
"""


def test_an_edited_answer_check_judges_anew_and_generates_nothing(model_folder, tmp_path):
    package = tmp_path / "sdd_utils"
    shutil.copytree(ROOT / "sdd_utils", package, ignore=shutil.ignore_patterns("__pycache__"))

    def distil():
        given = json.dumps([ROWS, SETTINGS, str(model_folder), str(tmp_path / "set.jsonl")])
        command = [sys.executable, "-c", COUNT, given]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    before, module = distil(), package / "steps" / "answer_check.py"
    assert before["tokens"] > 0
    edited = re.sub(r"^BANNED_PHRASES = .*$", 'BANNED_PHRASES = ("",)', module.read_text(), flags=re.M)
    module.write_text(edited.replace('if finish != "stop":', "if not finish:"))
    assert distil() == {"tokens": 0, "reasons": ["banned phrase"]}
    assert before["reasons"] != ["banned phrase"]


def test_generation_ends_at_the_end_token_even_where_it_is_the_padding_token(model, tokenizer):
    ends = chat_format.end_tokens(tokenizer, model.generation_config)
    assert ends == [tokenizer.pad_token_id]
    stopped = chat_format.finished(tokenizer, [65, 66, *ends], ends)
    assert (stopped["finish"], stopped["n_tokens"]) == ("stop", 3)
    assert chat_format.finished(tokenizer, [65, 66, 67, 68], ends)["finish"] == "length"


@pytest.mark.parametrize(
    ("thought", "reason"),
    [("Add them.</think>\n\n", "kept"), ("The reference answer says so.</think>", "kept"), ("Add them. ", "truncated")],
)
def test_a_rewrite_never_holds_thinking(thought, reason):
    written = [{"id": "m", "text": f"<think>{thought}It is 7.", "finish": "stop", "n_tokens": 9, "seed": 0}]
    for row in (MATH, MATH | {"answer": ""}):
        (judged,) = distillation.judge([row], written)
        assert (judged["reason"], judged["response"]) == (reason, "It is 7." if reason == "kept" else MATH["response"])
        assert judged["finish"] == ("stop" if reason == "kept" else "length")
        assert "Add" not in judged["rewrite"]


def test_rates(tmp_path):
    rows = [MATH | {"id": str(i), "response": "a b c d e f g h i"} for i in range(4)]
    kept = {"source": "distilled", "reason": "kept", "attempt": 1, "finish": "stop"}
    rejected = {"source": "original", "attempt": 1, "response": "a b c d e f g h i"}
    made = [
        {"id": "0", "response": "a b  c d e f g h i", **kept},
        {"id": "1", "response": "z", **kept},
        {"id": "2", "reason": "truncated", "finish": "length", **rejected},
        {"id": "3", "reason": "empty", "finish": "stop", **rejected},
    ]
    found = distillation.statistics(rows, made)
    assert (found["fallback_rate"], found["copy_rate"], found["truncation_rate"]) == (0.5, 0.25, 0.25)
    assert found["overlap_8gram"] == 0.5
    json.dumps(found)
    for judging in (distillation.statistics, distillation.judge):
        with pytest.raises(ValueError, match="does not belong"):
            judging(rows, made[::-1])
