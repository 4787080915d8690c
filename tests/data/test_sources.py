"""Data sets from files and from a hub: columns, splits, the row rule, and what is said when rows cannot be had."""

import dataclasses
import json
import os
import subprocess
import sys

import datasets
import pytest

from sdd_utils import ROOT
from sdd_utils.data import json_rows, source_rows, sources
from sdd_utils.data.rows import COLUMNS, SPLITS, left_out_rows, load_rows, question_of

ROWS = [
    {"q": f"What is {i} + {i}?", "about": "sums" if i % 2 else None, "a": f"It is\u2028{2 * i}.\n#### {2 * i}"}
    for i in range(1, 41)
] + [{"q": "?", "about": "", "a": "  "}, {"q": "?", "about": "", "a": "word " * 30}]
KEYS = {"instruction": "q", "context": "about", "response": "a"}


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    monkeypatch.setattr(source_rows, "CACHE", tmp_path / "cache")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"mine": {"source": str(tmp_path / "mine.jsonl"), **KEYS}}


def test_a_file_becomes_rows_with_context_and_answer(own_data):
    rows = load_rows("mine", split="train", rows=0, own_data=own_data)
    held_out = load_rows("mine", split="test", rows=0, own_data=own_data)
    assert all(tuple(row) == COLUMNS for row in rows)
    row = next(row for row in rows if row["instruction"] == "What is 7 + 7?")
    assert (row["context"], row["response"], row["answer"]) == (
        "sums",
        "It is\u2028 14.\n#### 14".replace("\u2028 ", "\u2028"),
        "14",
    )
    ids = {row["id"] for row in rows}
    assert len(held_out) == 2  # five per cent of 42 rows
    assert ids.isdisjoint(row["id"] for row in held_out)
    assert question_of(row) == "What is 7 + 7?\n\nsums"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("3 + 4 = 7\n####  $1,200 \n\n", "$1,200"),
        ("It is there.\n#### Paris", "Paris"),
        ("#### Ingredients\n- eggs\n\n#### Method\nMix.", ""),
        ("#### 7\nThat is all.", ""),
        ("7 #### 8", ""),
        ("no mark", ""),
    ],
)
def test_the_answer_stands_in_the_last_line_and_a_heading_is_none(response, answer):
    names = {"instruction": "q", "context": "", "response": "r", "answer": ""}
    assert source_rows._columns({"q": "?", "r": response}, names, where="")["answer"] == answer


def test_empty_and_long_rows_are_left_out_and_counted(own_data):
    settings = {"own_data": own_data, "max_response_words": 20}
    kept = [load_rows("mine", split=split, rows=0, **settings) for split in SPLITS]
    dropped = [left_out_rows("mine", split=split, **settings) for split in SPLITS]
    assert sum(map(len, kept)) == 40
    assert sum(counts["empty"] for counts in dropped) == sum(counts["too long"] for counts in dropped) == 1


def test_rows_are_read_once_and_again_where_the_file_changed(own_data, tmp_path, monkeypatch):
    first = load_rows("mine", split="train", rows=5, own_data=own_data)
    monkeypatch.setattr(json_rows, "read_rows", lambda *_, **__: pytest.fail("read again"))
    assert load_rows("mine", split="train", rows=5, own_data=own_data) == first
    (tmp_path / "mine.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(pytest.fail.Exception, match="read again"):
        load_rows("mine", split="train", rows=1, own_data=own_data)


def test_a_stream_that_does_not_know_its_columns_is_asked_for_a_row(own_data, monkeypatch):
    stream = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    assert stream.column_names is None
    monkeypatch.setattr(source_rows, "_load", lambda *_, **__: stream)
    source = sources.Source(**own_data["mine"] | {"source": "org/name"})
    assert len(source_rows._mapped("mine", source, "train", rows=0)) == len(ROWS)
    with pytest.raises(ValueError, match="has no column 'reply' but q, about, a"):
        source_rows._mapped("mine", dataclasses.replace(source, response="reply"), "train", rows=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"response": "reply"}, r"data set 'mine' .*has no column 'reply' but q, about, a"),
        ({"source": "not/there.jsonl"}, r"data set 'mine': the file 'not/there.jsonl' does not exist"),
        (
            {"source": "data/mine.csv/rows"},
            r"'data/mine.csv/rows' is no hub id .* no file whose name ends in .jsonl, .json,",
        ),
        (
            {"source": "studies/embedded.yaml"},
            r"source 'studies/embedded.yaml' is no hub id .*: write the rows as JSON",
        ),
        ({"source": "mine.csv.gz"}, r"source 'mine.csv.gz' is no hub id .* no file whose name ends in .jsonl"),
        ({"sorce": "x"}, r"own_data 'mine' has the unknown key 'sorce': allowed are source"),
    ],
)
def test_wrong_sources_are_named(own_data, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_rows("mine", split="train", rows=1, own_data={"mine": own_data["mine"] | changes})


def from_lines(tmp_path, rows, **keys):
    """Everything that a file of these rows gives: train rows, test rows."""
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        load_rows("other", split=split, rows=0, own_data={"other": {"source": str(tmp_path / "other.jsonl"), **keys}})
        for split in SPLITS
    ]


def test_a_question_stands_on_one_side_of_the_split_however_it_is_written(own_data, tmp_path):
    """Ten answers to each of 40 questions: two are held out, and cost their own rows only."""
    forms = ["How much is {}?", "how much  is {}?", " HOW MUCH IS {}?\n"]
    rows = [{"q": forms[i % 3].format(i // 10), "r": f"answer {i}"} for i in range(400)]
    train, test = from_lines(tmp_path, rows, instruction="q", response="r")
    asked = [{" ".join(row["instruction"].lower().split()) for row in side} for side in (train, test)]
    assert len(test) == 2
    assert asked[0].isdisjoint(asked[1])
    assert len(train) == 400 - 10 * len(asked[1])
    other = {"other": {"source": str(tmp_path / "other.jsonl"), "instruction": "q", "response": "r"}}
    assert left_out_rows("other", split="train", own_data=other)["asked in test"] == 400 - 2 - len(train)


def test_the_same_instruction_about_another_context_is_another_question(own_data, tmp_path):
    rows = [{"q": "Summarise.", "c": f"Text {i}.", "r": "Short."} for i in range(60)]
    train, test = from_lines(tmp_path, rows, instruction="q", context="c", response="r")
    assert (len(train), len(test)) == (57, 3)


def test_one_question_alone_is_trained_on_and_nothing_is_held_out(own_data, tmp_path):
    rows = [{"q": "When?", "r": f"In {i}."} for i in range(30)]
    with pytest.raises(ValueError, match="other has no test rows .*: it needs more rows, with other questions"):
        from_lines(tmp_path, rows, instruction="q", response="r")
    own = {"other": {"source": str(tmp_path / "other.jsonl"), "instruction": "q", "response": "r"}}
    assert len(load_rows("other", split="train", rows=0, own_data=own)) == 30


def test_train_rows_that_a_hub_set_asks_in_its_own_test_split_are_left_out(own_data, monkeypatch):
    splits = {"train": [f"Q{i}" for i in range(20)], "dev": ["q3", "Q7 ", "other"]}
    loaded = {
        split: datasets.Dataset.from_list([{"instruction": asked, "response": "r"} for asked in questions])
        for split, questions in splits.items()
    }
    monkeypatch.setattr(source_rows, "_load", lambda source, split, **_: loaded[split])
    own = {"theirs": {"source": "org/name", "test_split": "dev"}}
    train = load_rows("theirs", split="train", rows=0, own_data=own)
    assert {row["instruction"] for row in train} == {f"Q{i}" for i in range(20)} - {"Q3", "Q7"}
    assert left_out_rows("theirs", split="train", own_data=own) == {"asked in test": 2, "empty": 0, "too long": 0}
    assert len(load_rows("theirs", split="test", rows=0, own_data=own)) == 3


def test_a_sample_of_a_file_is_the_one_that_the_datasets_library_draws(own_data, tmp_path):
    source = sources.Source(**own_data["mine"] | {"sample": 10})
    drawn = datasets.Dataset.from_list([{"i": i} for i in range(len(ROWS))]).shuffle(seed=0).select(range(10))["i"]
    rows = source_rows._mapped("mine", source, "train", rows=10)
    assert [row["instruction"] for row in rows] == [ROWS[i]["q"] for i in drawn]


@pytest.mark.parametrize("folder", ["[odd] *?{x}", "sp äce", "日本"])
def test_the_name_of_a_folder_is_no_pattern(own_data, tmp_path, folder):
    path = tmp_path / folder / "M [1]*.JSONL"
    path.parent.mkdir()
    path.write_text((tmp_path / "mine.jsonl").read_text())
    found = load_rows("mine", split="train", rows=0, own_data={"mine": own_data["mine"] | {"source": str(path)}})
    assert found == load_rows("mine", split="train", rows=0, own_data=own_data)


def test_a_line_that_cannot_be_taken_is_named_with_its_file(own_data, tmp_path):
    rows = [{"q": f"Q{i}", "r": "fine"} for i in range(5)] + [{"q": "Q", "r": {"text": "deep"}}]
    with pytest.raises(ValueError, match=r"other.jsonl\): line 6: column 'r' holds a mapping \({'text': 'deep'}\): it"):
        from_lines(tmp_path, rows, instruction="q", response="r")


def test_full_disk_and_gated_repositories_are_told(own_data, monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    for error, said in [
        (OSError(28, "No space left on device"), "the disk is full: free some space"),
        (DatasetNotFoundError("Dataset 'x/y' is a gated dataset on the Hub."), "is gated: accept its licence"),
        (ConnectionError("broken"), "could not be read: broken; once the hub is reachable, run the same"),
    ]:
        monkeypatch.setattr(source_rows, "_load", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(OSError, match=said):
            load_rows("mine", split="train", rows=1, own_data={"mine": {"source": "org/name"}})
    assert not list(source_rows.CACHE.iterdir())  # nothing half-read is left


def test_two_jobs_may_read_the_same_rows_at_once(own_data, monkeypatch):
    """The other one is finished while this one reads: its rows are taken, and nothing is left over."""
    read, folders = source_rows._split, []

    def overtaken(name, source):
        found = read(name, source)
        if not folders:
            folders.append(name)
            load_rows("mine", split="train", rows=1, own_data=own_data)
        return found

    monkeypatch.setattr(source_rows, "_split", overtaken)
    assert len(load_rows("mine", split="train", rows=5, own_data=own_data)) == 5
    assert len([*source_rows.CACHE.iterdir()]) == 1


def test_every_hub_source_is_pinned_to_a_commit():
    for source in sources.HUB.values():
        assert len(source.source.partition("@")[2]) == 40


SCRIPT = """
import json, sys
from pathlib import Path
from sdd_utils.data import source_rows
from sdd_utils.data.rows import SPLITS, load_rows
from sdd_utils.steps.answer_check import same_answer
source_rows.CACHE = Path(sys.argv[1])
found = {}
for name in sys.argv[2:]:
    rows = load_rows(name, split="train", rows=40, max_response_words=200)
    sizes = [len(load_rows(name, split=split, rows=0)) for split in SPLITS]
    checks = [same_answer(row, row["response"]) for row in rows if row["answer"]]
    found[name] = {"sizes": sizes, "contexts": any(row["context"] for row in rows), "right": checks}
print(json.dumps(found))
"""


def read_from(hub, folder, *names, **environment):
    variables = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"} | environment
    command = [sys.executable, "-c", SCRIPT, str(folder / "rows"), *names]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_sets_have_our_columns_and_right_answers_then_need_no_network(hub, tmp_path):
    names = ["gsm8k", "dolly", "alpaca", "openmathinstruct2", "c4"]
    found = read_from(hub, tmp_path, *names)
    assert found["gsm8k"]["sizes"] == [7473, 1319]
    assert found["dolly"]["contexts"]
    assert found["alpaca"]["contexts"]
    assert all(found["gsm8k"]["right"])
    assert all(found["openmathinstruct2"]["right"])
    again = read_from("http://127.0.0.1:9", tmp_path, *names, HF_HUB_OFFLINE="1")
    assert again == found
