"""The table of architectures: its page is its record's, and a handful of its rows are still what the code does."""

import json

import pytest
from architectures import checks, page, run, tiny

RECORD = json.loads(run.RECORD.read_text())
ROWS = {row["architecture"]: row for row in RECORD["rows"]}
# One of each: all exact, windows that fall back, states in place of keys, a rule by layer index, an encoder, a decoder
# of an encoder-decoder.
HANDFUL = ("llama", "gemma2", "mamba", "qwen2_moe", "bert", "bart")


def test_the_page_is_the_records():
    assert run.PAGE.read_text() == page.page_of(RECORD)


def test_every_architecture_has_a_row_and_most_are_decoders_that_are_checked():
    assert set(ROWS) == set(tiny.CLASSES)
    assert sum("cut" in row for row in RECORD["rows"]) > 100
    assert sum("not_built" in row for row in RECORD["rows"]) < 10


def test_no_cell_is_wrong_and_none_a_crash():
    assert [kind for kind, row in ROWS.items() if not page.is_right(row)] == []


@pytest.mark.parametrize("kind", HANDFUL)
def test_the_row_is_still_what_the_code_does(kind):
    assert run.row_of(kind) == ROWS[kind]


def test_a_check_tells_a_wrong_result_from_a_refusal_and_from_a_crash():
    model = tiny.tiny_model("llama")
    with pytest.raises(AssertionError, match="differs by"):
        checks._same(checks.plain(model, checks.IDS), checks.plain(model, checks.IDS + 1))
    assert checks.run(lambda: checks.cut(model, start=0, block_size=6)).startswith(
        "refused: block size 6 is impossible"
    )
    assert checks.run(lambda: {}["missing"]).startswith("crash: KeyError")
    assert not page.is_right({"cut": {"first": "exact", "last": "WRONG: differs"}})


def test_a_page_counts_names_and_explains():
    row = {"architecture": "a", "cut": dict.fromkeys(checks.BLOCKS, "exact"), "decode": "falls back", "train": "exact"}
    row |= {"reload": {"first": "refused: no", "middle": "exact", "last": "exact"}, "score": "exact"}
    other = {"architecture": "b", "left_out": "encoder-decoder"}
    text = page.page_of({"versions": {"transformers": "5"}, "rows": [row, other]})
    assert "| a | exact | exact; first: refused | falls back | exact | exact |" in text
    assert "- **a**, reload: no" in text
    assert "- encoder-decoder: b" in text
