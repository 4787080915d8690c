"""Files are whole or absent, and rows that were dear to make are never lost."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdd_utils.base.files import digest, keep_rows, one_at_a_time, read_json_lines, whole_folder, write_json_lines


def made_of(asked):
    return lambda missing: (asked.append(id_) or {"id": id_, "text": id_.upper()} for id_ in missing)


def test_only_missing_rows_are_made_and_all_come_back_in_order(tmp_path):
    path, asked = tmp_path / "rows.jsonl", []
    keep_rows(path, {"b": "1"}, make=made_of(asked))
    rows = keep_rows(path, {"a": "1", "b": "1", "c": "1"}, make=made_of(asked))
    assert [row["text"] for row in rows] == ["A", "B", "C"]
    assert asked == ["b", "a", "c"]


def test_a_row_of_another_key_is_made_anew_and_the_former_stays(tmp_path):
    path, asked = tmp_path / "rows.jsonl", []
    before = keep_rows(path, {"a": "old"}, make=made_of(asked))
    keep_rows(path, {"a": "new"}, make=made_of(asked))
    assert keep_rows(path, {"a": "old"}, make=made_of(asked)) == before
    assert asked == ["a", "a"]
    assert [row["key"] for row in read_json_lines(path)] == ["old", "new"]


def test_rows_made_before_an_error_stay_and_half_a_line_goes(tmp_path):
    path = tmp_path / "rows.jsonl"

    def make(missing):
        yield {"id": missing[0]}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        keep_rows(path, {"a": "1", "b": "1"}, make=make)
    with path.open("a") as file:
        file.write('{"id": "b", "ke')
    asked = []
    keep_rows(path, {"a": "1", "b": "1"}, make=made_of(asked))
    assert asked == ["b"]
    assert len(read_json_lines(path)) == 2


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n{"id": "c"}\n')
    with pytest.raises(ValueError, match=r"set.jsonl, line 2 is not complete JSON"):
        read_json_lines(path)
    with pytest.raises(FileNotFoundError, match=r"none.jsonl does not exist yet"):
        read_json_lines(tmp_path / "none.jsonl")


def test_json_lines_come_back_as_they_were(tmp_path):
    rows = [{"id": "ü", "line": "a\nb"}, {}]
    assert read_json_lines(write_json_lines(tmp_path / "rows.jsonl", rows)) == rows


def test_a_digest_tells_apart_what_differs():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest("a", "b"), digest(["a", "b"]), digest("ab"), digest("b", "a")}) == 4


def test_a_folder_is_whole_or_as_before(tmp_path):
    folder = tmp_path / "model"
    with whole_folder(folder) as scratch:
        (scratch / "a.json").write_text(json.dumps(1))

    def interrupted():
        with whole_folder(folder) as scratch:
            (scratch / "b.json").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "a.json"]


def test_only_one_at_a_time_is_in_there(tmp_path):
    inside = []

    def work(_):
        with one_at_a_time(tmp_path / "new" / ".lock"):
            inside.append("in")
            time.sleep(0.1)
            inside.append("out")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert inside == ["in", "out"] * 3
