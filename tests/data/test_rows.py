"""The data sets: fixed, disjoint between splits, clean and checkable."""

import os
import subprocess
import sys
from decimal import Decimal

import pytest

from sdd_utils.data import offline
from sdd_utils.data.number_reader import last_number
from sdd_utils.data.offline import OFFLINE, PYDOC_NAMES, _pydoc, clean_docstring
from sdd_utils.data.rows import COLUMNS, SPLITS, calibration_set, fingerprint, load_rows

NAMES = ("gsm_symbolic", "pydoc")  # made on the spot
SMALL = {"train": 600, "test": 150}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_same_columns_all_strings(name, split):
    rows = load_rows(name, split=split, rows=SMALL[split])
    assert len(rows) == SMALL[split]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert all(row["instruction"] and row["response"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_fewer_rows_are_the_head_of_more(name):
    assert load_rows(name, split="train", rows=10) == load_rows(name, split="train", rows=50)[:10]


def test_changing_a_loaded_row_changes_no_later_load(name):
    before = fingerprint(load_rows(name, split="test", rows=5))
    load_rows(name, split="test", rows=5)[0]["response"] = "changed"
    assert fingerprint(load_rows(name, split="test", rows=5)) == before


@pytest.mark.parametrize("column", ["id", "instruction", "response"])
def test_no_problem_is_in_both_splits_or_twice_in_one(name, column):
    train, test = (_everything(name, split=split) for split in SPLITS)
    train, test = [row[column] for row in train], [row[column] for row in test]
    assert not set(train) & set(test) or (name, column) == ("gsm_symbolic", "response")
    if (name, column) != ("gsm_symbolic", "response"):  # two problems may share their worked answer
        assert len(train) == len(set(train))
        assert len(test) == len(set(test))


def test_gsm_answers_are_the_last_number_of_short_worked_answers():
    for row in _everything("gsm_symbolic", split="train") + _everything("gsm_symbolic", split="test"):
        assert row["response"].splitlines()[-1] == f"#### {row['answer']}"
        assert last_number(row["response"]) == Decimal(row["answer"])
        assert float(row["answer"]) >= 0
        assert len(row["instruction"].split()) <= 60
        assert len(row["response"].split()) <= 60
        assert "final answer" not in row["instruction"]


def test_pydoc_responses_are_prose_within_bounds():
    for row in _everything("pydoc", split="train") + _everything("pydoc", split="test"):
        assert row["answer"] == ""
        assert 6 <= len(row["response"].split()) <= 60
        assert row["response"] == " ".join(row["response"].split())
        assert not any(mark in row["response"] for mark in (">>>", "--", "::"))
        assert row["response"][0].isupper()
        assert "builtins." not in row["instruction"]


def test_pydoc_asks_about_classes_and_functions_differently():
    asked = {row["id"]: row["instruction"] for row in _everything("pydoc", split="train")}
    assert asked["pydoc-builtins.hasattr"] == "What does hasattr do?"
    assert asked["pydoc-webbrowser.BaseBrowser"] == "What is the class webbrowser.BaseBrowser for?"


def test_a_name_this_python_lacks_moves_no_other_row_to_another_split(monkeypatch, tmp_path):
    names = PYDOC_NAMES.read_text().split()
    train, test = (_pydoc.__wrapped__(split) for split in SPLITS)
    monkeypatch.setattr(offline, "PYDOC_NAMES", tmp_path / "names.txt")
    offline.PYDOC_NAMES.write_text("\n".join(["json.no_such_name", "no_such_module.name", *names[2:]]))
    assert _pydoc.__wrapped__("train") == train[2:]
    assert _pydoc.__wrapped__("test") == test


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("f(a, b=1) -> int\n--\n\nReturn what a and b make together.", None),
        ("f(a, b=1) -> int\n\nReturn what a and b make together.", "Return what a and b make together."),
        ("One two three\nfour five six.\n\n>>> f(1)\n2", "One two three four five six."),
        ("One two three four five six.\n\n- a list\n  of things", "One two three four five six."),
        ("One two three four five six.\n\nExample:\n\n    f(1)", "One two three four five six."),
        ("One two three four five six.\n\n" + "word " * 55, "One two three four five six."),
        ("word " * 61, None),
        ("Too short.", None),
        ("", None),
    ],
)
def test_clean_docstring(text, cleaned):
    assert clean_docstring(text) == cleaned


def test_fingerprint_depends_on_values_and_order_not_on_the_process():
    code = (
        "from sdd_utils.data.rows import SPLITS, fingerprint, load_rows\n"
        "for name in ('gsm_symbolic', 'pydoc'):\n"
        "    for split in SPLITS: print(fingerprint(load_rows(name, split=split, rows=100)))"
    )
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for env in environments
    ]
    first, second = (process.communicate(timeout=60)[0].split() for process in started)
    assert first == second
    assert len(set(first)) == len(NAMES) * len(SPLITS)
    rows = load_rows("pydoc", split="train", rows=2)
    assert fingerprint(rows) != fingerprint(rows[::-1])
    assert fingerprint(rows) == fingerprint([dict(reversed(row.items())) for row in rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "train", 1), "data set 'x' is unknown: use one of gsm_symbolic, pydoc, gsm8k,.*study key data_sets"),
        (("pydoc", "dev", 1), "split 'dev' is unknown: use one of train, test"),
        (("pydoc", "test", 100_000), r"100000 rows of pydoc test cannot be had: ask for 1 to \d{3}, or 0 for all$"),
        (("gsm_symbolic", "train", -1), "-1 rows of gsm_symbolic train cannot be had"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    name, split, rows = arguments
    with pytest.raises(ValueError, match=message):
        load_rows(name, split=split, rows=rows)


def _everything(name, *, split):
    return OFFLINE[name](split)


def test_calibration_takes_the_same_number_of_each_set():
    rows = calibration_set(["pydoc", "gsm_symbolic"], rows=9)
    assert [row["id"].split("-")[0] for row in rows] == ["pydoc"] * 4 + ["gsm_symbolic"] * 4
    assert rows[:4] == load_rows("pydoc", split="train", rows=4)
    for names, count in ((["pydoc", "gsm_symbolic"], 1), ([], 4)):  # not "0 rows", which are all
        with pytest.raises(ValueError, match=f"{count} calibration rows of {len(names)} data sets: name a data set"):
            calibration_set(names, rows=count)


def test_a_second_calibration_set_has_the_next_rows():
    first, second = (calibration_set(["pydoc", "gsm_symbolic"], rows=8, skipped=skipped) for skipped in (0, 1))
    for name, at in (("pydoc", slice(4)), ("gsm_symbolic", slice(4, 8))):
        assert first[at] + second[at] == load_rows(name, split="train", rows=8)
    assert not {row["id"] for row in first} & {row["id"] for row in second}
