"""A full disk is recognised whichever library met it; `/dev/full` is one."""

import errno
from pathlib import Path

import pytest
import torch

from sdd_utils.base import disk
from sdd_utils.base.files import keep_rows, read_json_lines, whole_folder, write_text

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def by_python():
    with FULL.open("w") as file:
        file.write("x" * 100_000)


def by_torch():
    torch.save({"moments": torch.zeros(100_000)}, FULL)


def behind_another_error():
    try:
        by_python()
    except OSError as error:
        raise RuntimeError("saving failed") from error


@pytest.mark.parametrize("write", [by_python, by_torch, behind_another_error])
def test_it_is_told_in_one_sentence(write):
    with (
        pytest.raises(OSError, match="^the disk is full: free some space, then run the same command again"),
        disk.told(),
    ):
        write()


@pytest.mark.parametrize(
    "said",
    [
        "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "OSError: [Errno 122] Disk quota exceeded",
    ],
)
def test_it_is_recognised_by_what_libraries_say(said):
    assert disk.is_full(said)
    assert disk.is_full(RuntimeError(said))


def test_other_errors_stay_as_they_are():
    for error in (OSError(errno.EIO, "Input/output error"), ValueError("block_size is 3"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, disk.told():
            raise error
        assert caught.value is error


def test_a_sentence_that_knows_more_stays():
    said = OSError("model 'org/name': the disk is full: free some space, or set HF_HOME to another disk")
    with pytest.raises(OSError, match="HF_HOME") as caught, disk.told():
        raise said
    assert caught.value is said


def test_nothing_is_left_of_a_text_or_a_folder_that_did_not_fit(tmp_path, monkeypatch):
    write_text(tmp_path / "record.json", "before")
    monkeypatch.setattr("os.replace", lambda *_: by_python())
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "record.json", "after")
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "n2"):
        by_python()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("record.json", "before")]


def test_rows_that_fitted_are_not_made_again(tmp_path):
    path, made = tmp_path / "rows.jsonl", []

    def make(ids):
        for id_ in ids:
            made.append(id_)
            yield {"id": id_, "text": "x" * 100}
            if len(made) == 3:
                by_python()

    keys = dict.fromkeys("abcde", "k")
    with pytest.raises(OSError, match="No space left"):
        keep_rows(path, keys, make=make)
    with path.open("a") as file:
        file.write('{"id": "d", "key": "k", "te')  # what of a row fits before the disk is full
    keep_rows(path, keys, make=make)
    assert made == [*"abcde"]
    assert [row["id"] for row in read_json_lines(path)] == [*"abcde"]
