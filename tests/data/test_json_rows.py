"""A user's JSON file: values as written, and trouble told with its line."""

import gzip
import json
import re

import pytest

from sdd_utils.data.json_rows import read_rows

ROWS = [{"q": "Où?", "n": 12345678901234567890}, {"q": "日\u2028本\r\n", "n": 1.10}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(tmp_path, content: bytes, name="mine.jsonl"):
    (tmp_path / name).write_bytes(content)
    return read_rows(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_any_unicode_encoding_is_read_compressed_or_not(tmp_path, encoding, compress):
    found = read(tmp_path, compress(LINES.encode(encoding)))
    assert [row["q"] for _, row in found] == [row["q"] for row in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        LINES.rstrip("\n"),
        f"\n{LINES}\n  \n",
        f"[{LINES.strip().replace(chr(10), ',')}]",
        "[\n" + LINES.strip().replace("\n", ",\n ") + "\n]\n",
    ],
)
def test_lines_and_one_list_give_the_same_rows(tmp_path, content):
    assert [row for _, row in read(tmp_path, content.encode())] == [
        {"q": "Où?", "n": "12345678901234567890"},
        {"q": "日\u2028本\r\n", "n": "1.1"},
    ]


@pytest.mark.parametrize("literal", ["1960", "12345678901234567890123", "1.10", "-0.50", "1e400", "9" * 5000])
def test_numbers_keep_every_digit(tmp_path, literal):
    assert read(tmp_path, b'{"n": %s}' % literal.encode()) == [("line 1", {"n": literal})]


def test_dates_stay_text_and_columns_may_change_their_kind(tmp_path):
    rows = [{"a": "1969-07-20"}, {"a": None}, {"a": ["x"]}, {"b": "late"}, {"a": "12:30"}]
    found = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert found == [(f"line {number}", row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it holds no rows: write one JSON object a line"),
        (b"\n \n", "it holds no rows"),
        (b"[]", "it holds no rows"),
        (LINES.encode() + b'{"q": "cut', "line 3 is not complete JSON (Unterminated string starting at, character 7)"),
        (LINES.encode()[:-3], "line 2 is not complete JSON"),
        (b'[{"q": 1},\n{"q": ]', "line 2 is not complete JSON (Expecting value, character 7)"),
        (b'{"q": 1} {"q": 2}', "line 1 is not complete JSON (Extra data, character 10)"),
        (b'{"q": 1}\n[1]', "line 2 holds no JSON object"),
        (b'[{"q": 1}, "two"]', "row 2 holds no JSON object"),
        (b'{"q": 1}\n{"q": "a", "r": "b", "r": "c"}', "line 2 has the key 'r' twice: keep one of ['b', 'c']"),
        (b'{"q": {"x": 1, "x": 1}}', "line 1 has the key 'x' twice"),
        (b'{"q": 1}\n{"q": NaN}', "line 2 holds NaN, which JSON does not have: write null"),
        (b'{"q": -Infinity}', "line 1 holds -Infinity"),
        ('{"q": 1}\n{"q": "café"}'.encode("latin-1"), "line 2 is not UTF-8: save the file as UTF-8"),
        (LINES.encode("utf-16")[:-1], "line 2 is not UTF-16: save the file as UTF-8"),
        (gzip.compress(LINES.encode(), mtime=0)[:-12], "it is no whole gzip file"),
        (b"\x1f\x8bnothing", "it is no whole gzip file"),
        (b'{"q": ' * 100_000, "line 1 is nested too deeply"),
    ],
)
def test_trouble_is_told_with_its_line(tmp_path, content, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)
