"""A user's CSV and Parquet files: values as written, and trouble told in one sentence."""

import csv
import io
import re
from datetime import date

import pandas as pd
import pytest

from sdd_utils.data.rows import load_rows
from sdd_utils.data.table_rows import read_rows

ROWS = [
    {"q": 'Où, à "Paris"?', "n": "007"},
    {"q": "日\u2028本\r\nzwei", "n": "1.10"},
    {"q": " spaced ", "n": "1969-07-20"},
    {"q": "", "n": "NA"},
]


def csv_text(rows, **look):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], **look)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def read(tmp_path, content: bytes, name="mine.csv"):
    (tmp_path / name).write_bytes(content)
    return read_rows(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("look", [{}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}])
def test_every_cell_of_a_csv_file_is_the_text_that_was_written(tmp_path, encoding, look):
    assert read(tmp_path, csv_text(ROWS, **look).encode(encoding)) == [
        (f"row {number}", row) for number, row in enumerate(ROWS, start=1)
    ]


def test_a_cell_may_be_long_and_lines_empty(tmp_path):
    text = "x" * 500_000
    assert read(tmp_path, f"a,b\n\n1,{text}\n\n".encode()) == [("row 1", {"a": "1", "b": text})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it holds no rows"),
        ("a,b\n", "it holds no rows"),
        ("a,b\n1,2\n1,2,3\n", "the row that ends on line 3 has 3 cells and 2 columns: put cells with commas"),
        ('a,b\n"1,2\n', "line 2 is no CSV"),
        ("a,a\n1,2\n", "it has the column 'a' twice: rename one"),
        ("a;b\n1;2\n", "its columns are separated by semicolons: save it with commas"),
        ("a\tb\n1\t2\n", "its columns are separated by tabs"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, content, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read(tmp_path, content.encode())
    assert "\n" not in str(error.value)


def test_another_encoding_is_told_with_its_line(tmp_path):
    with pytest.raises(ValueError, match="line 2 is not UTF-8: save the file as UTF-8"):
        read(tmp_path, "a,b\nü,2\n".encode("latin-1"))


def test_parquet_keeps_numbers_and_messages_and_a_cut_file_is_told(tmp_path):
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
    frame = pd.DataFrame({"messages": turns, "n": [10**18], "empty": [None], "day": [date(2026, 11, 29)]})
    frame.to_parquet(tmp_path / "mine.parquet")
    ((where, row),) = read_rows(tmp_path / "mine.parquet")
    assert (where, row["n"], row["empty"], row["day"]) == ("row 1", 10**18, None, date(2026, 11, 29))
    assert [dict(turn) for turn in row["messages"]] == turns[0]
    whole = (tmp_path / "mine.parquet").read_bytes()
    with pytest.raises(ValueError, match="it is no whole Parquet file .*: copy it again"):
        read(tmp_path, whole[: len(whole) // 2], "cut.parquet")


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet", "MINE.CSV"])
def test_a_study_reads_them_as_it_reads_json_lines(tmp_path, name, monkeypatch):
    monkeypatch.setattr("sdd_utils.data.source_rows.CACHE", tmp_path / "cache")
    frame = pd.DataFrame({"question": [f"Q{i}?" for i in range(40)], "reply": ["yes"] * 40})
    frame.to_parquet(tmp_path / name) if name.endswith("parquet") else frame.to_csv(tmp_path / name, index=False)
    own = {"mine": {"source": str(tmp_path / name), "instruction": "question", "response": "reply"}}
    rows = load_rows("mine", split="train", rows=0, own_data=own)
    assert (len(rows), {row["response"] for row in rows}) == (38, {"yes"})


def test_a_date_of_parquet_is_refused_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr("sdd_utils.data.source_rows.CACHE", tmp_path / "cache")
    pd.DataFrame({"q": ["a", "b"], "r": [date(2026, 1, 1)] * 2}).to_parquet(tmp_path / "mine.parquet")
    own = {"mine": {"source": str(tmp_path / "mine.parquet"), "instruction": "q", "response": "r"}}
    with pytest.raises(ValueError, match=r"mine.parquet\): row 1: column 'r' holds a date .*: it must hold text"):
        load_rows("mine", split="train", rows=0, own_data=own)
