"""Extraction, conditional selection, and a distilled set that a kill cannot spoil."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdd_utils import distillation, generation, models

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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 10", "10"), ("1,234.50.", "1234.50"), ("$-3", "-3"), ("-$3", "-3"), ("10-5", "5"), ("v2", None),
        ("#### 288", "288"), ("is 3.", "3"), ("1.2.3", None), ("50km", "50"), ("1e5", None), ("$.50", "0.50"),
        ("**42**", "42"), ("5%", "5"), ("nothing", None), ("a −7", "-7"), ("12,345,678", "12345678"), ("", None),
        ("so $1,200.50.", "1200.50"), ("#### -3", "-3"), ("1 then 2, done", "2"), ("none", None),
    ],
)  # fmt: skip
def test_last_number_on_hostile_strings(text, number):
    assert distillation.last_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "#### {}", "so ${} .", "1 2 {}.", "= {}!"]))
def test_last_number_reads_back_what_was_written(value, form):
    assert distillation.last_number(form.format(value)) == value


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so \\boxed{\\frac{1}{2}}", True),
        ("so \\boxed{\\frac12}", True),
        ("so \\boxed{0.3}", False),
        ("no box", None),
        ("so \\boxed\\frac{1}{2}", None),  # lm-eval's reader asserts braces
        ("so \\boxed(5) is {x}", None),
        ("so \\boxed", None),
    ],
)
def test_boxed_answers_on_hostile_strings(text, right):
    row = {"answer": "\\frac{1}{2}", "response": "thus \\boxed{\\frac{1}{2}}", "context": "", "instruction": "?"}
    assert distillation.same_answer(row, text) is right


@given(st.text())
def test_last_number_never_fails(text):
    found = distillation.last_number(text)
    assert found is None or found.is_finite()


def test_an_answer_in_words_does_not_stand_within_a_word():
    row = {"answer": "No", "response": "No."}
    assert distillation.same_answer(row, "The answer is: no!")
    assert not distillation.same_answer(row, "I know it: yes.")


MATH = {"id": "m", "instruction": "?", "context": "", "response": "3 + 4 = 7\n#### 7", "answer": "7"}


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("It is 7.", "stop", "kept"),
        ("7.0", "stop", "kept"),
        ("It is 7.", "length", "truncated"),
        ("It is 8.", "stop", "wrong answer"),
        ("It is seven.", "stop", "no answer"),
        (distillation.opening({"answer": "7", "response": "7"}), "stop", "empty"),
        ("As the Reference Answer says, 7", "stop", "banned phrase"),
    ],
)
def test_conditional_selection(text, finish, reason):
    response, given_reason = distillation.select(MATH, text=text, finish=finish)
    assert given_reason == reason
    assert response == (text if reason == "kept" else MATH["response"])


def test_a_solution_ends_with_its_first_finished_answer_line():
    assert distillation.until_answer("3 + 4 = 7\n#### 7\n#### 7\n####") == "3 + 4 = 7\n#### 7"
    assert distillation.until_answer("3 + 4 = 7\n#### 7") is None  # cut here, the number could go on
    assert distillation.until_answer("### 7\nno\n####\n") is None


def test_the_template_shows_context_instruction_and_reference():
    for row, turn in ((MATH, 1), (MATH | {"answer": ""}, 0)):
        row = row | {"context": "the context"}
        text = distillation.rewrite_messages(row)[turn]["content"]
        assert all(part in text for part in ("the context", MATH["instruction"], MATH["response"]))


def test_an_answer_of_its_own_is_asked_without_the_reference_and_checked_like_a_rewrite():
    asking = MATH | {"context": "the context", "instruction": "How many are 3 and 4?"}
    for row in (asking, asking | {"answer": ""}, asking | {"answer": "seven", "response": "seven, I think"}):
        asked = distillation.answer_messages(row)
        text = "\n".join(message["content"] for message in asked)
        assert "the context" in text
        assert row["instruction"] in text
        assert row["response"] not in text
        assert "eference" not in text
    assert distillation.answer_messages(MATH)[-1] == distillation.rewrite_messages(MATH)[-1]


def test_own_answers_are_another_set_with_the_same_rows(model_folder, tmp_path):
    own = distillation.distill(model_folder, ROWS, path=tmp_path / "own.jsonl", which="self_generated", **SETTINGS)
    rewrites = distill(model_folder, tmp_path / "rewrites.jsonl")
    assert [row["id"] for row in own] == [row["id"] for row in rewrites] == [row["id"] for row in ROWS]
    assert [row["rewrite"] for row in own] != [row["rewrite"] for row in rewrites]


def distill(model_folder, path):
    return distillation.distill(model_folder, ROWS, path=path, **SETTINGS)


def test_a_kill_at_any_row_gives_the_same_set(model_folder, tmp_path):
    whole = distill(model_folder, tmp_path / "whole.jsonl")
    assert [row["id"] for row in whole] == [row["id"] for row in ROWS]
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    key = (tmp_path / "whole.key").read_text()
    for cut in range(len(lines)):
        path = tmp_path / f"cut{cut}.jsonl"
        path.with_suffix(".key").write_text(key)
        path.write_text("".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])  # killed in the middle of a line
        assert distill(model_folder, path) == whole


def test_finished_rows_are_not_generated_again(model_folder, tmp_path, monkeypatch):
    whole = distill(model_folder, tmp_path / "set.jsonl")
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded again"))
    assert distill(model_folder, tmp_path / "set.jsonl") == whole


def test_changed_settings_begin_the_set_anew(model_folder, tmp_path, monkeypatch):
    distill(model_folder, tmp_path / "set.jsonl")
    monkeypatch.setitem(SETTINGS, "seed", 2)
    assert {row["seed"] for row in distill(model_folder, tmp_path / "set.jsonl")} == {2}


def test_truncated_line_inside_a_set_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n{"id": "c"}\n')
    with pytest.raises(ValueError, match=r"set.jsonl, line 2 is not complete JSON"):
        generation.read_rows(path)


def test_generation_ends_at_the_end_token_even_where_it_is_the_padding_token(model, tokenizer):
    ends = generation.end_tokens(model, tokenizer)
    assert ends == [tokenizer.pad_token_id]
    stopped = generation._finished(tokenizer, [65, 66, *ends], ends)
    assert (stopped["finish"], stopped["n_tokens"]) == ("stop", 3)
    assert generation._finished(tokenizer, [65, 66, 67, 68], ends)["finish"] == "length"


def test_rates(tmp_path):
    rows = [MATH | {"id": str(i), "response": "a b c d e f g h i"} for i in range(4)]
    made = [
        {"id": "0", "response": "a b  c d e f g h i", "source": "distilled", "reason": "kept", "finish": "stop"},
        {"id": "1", "response": "z", "source": "distilled", "reason": "kept", "finish": "stop"},
        {"id": "2", "response": "a b c d e f g h i", "source": "original", "reason": "truncated", "finish": "length"},
        {"id": "3", "response": "a b c d e f g h i", "source": "original", "reason": "empty", "finish": "stop"},
    ]
    found = distillation.statistics(rows, made)
    assert (found["fallback_rate"], found["copy_rate"], found["truncation_rate"]) == (0.5, 0.25, 0.25)
    assert found["overlap_8gram"] == 0.5
    json.dumps(found)
    with pytest.raises(ValueError, match="does not belong"):
        distillation.statistics(rows, made[::-1])
