"""Files that are complete or absent: text, JSON, JSON lines, folders; and their digests."""

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished-"  # in the names of what is being written, after a dot and the name that it will have


def write_json(path: Path, content: dict | list) -> Path:
    """Write JSON completely or not at all; raises what `json_text` raises."""
    return write_text(path, json_text(path, content))


def json_text(path: Path, content: dict | list) -> str:
    """What is to be written into a JSON file. Raises ValueError on a NaN or an infinity."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(
            f"{path.name} would hold NaN or infinity: something went wrong before, nothing was written"
        ) from error
    return _one_line_lists(text) + "\n"


def write_text(path: Path, text: str) -> Path:
    """Write a text file completely or not at all."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{_UNFINISHED}", dir=path.parent)
    try:
        with open(handle, "wb") as scratch:
            scratch.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def _one_line_lists(text: str) -> str:
    """Lists of plain numbers take one line, not one line a number."""
    number = r"-?\d[\d.eE+-]*"
    return re.sub(rf"\[\s+{number}(?:,\s+{number})*\s+\]", lambda m: re.sub(r"\s+", " ", m.group()), text)


def file_sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """`file_sha256`, which reads a large file once per process unless it changes."""
    state = path.stat()
    return _sha256_of(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256_of(path: Path, _size: int, _time: int) -> str:
    return file_sha256(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end; after an error nothing has changed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}{_UNFINISHED}", dir=folder.parent))
    try:
        yield scratch
        for path in (scratch, *scratch.rglob("*")):  # some writers let nobody else read: a cluster's group must
            path.chmod(0o755 if path.is_dir() else 0o644)
        former = scratch.with_name(f"{scratch.name}-former")
        if folder.exists():
            folder.rename(former)  # not removed before the new one is in its place
        scratch.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing in a folder and below; call it where no process writes there now."""
    for path in [*folder.rglob(f".*{_UNFINISHED}*")]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same path, which then holds an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
        yield


def read_json_lines(path: Path) -> list[dict]:
    """Rows of a JSON-lines file.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is not JSON; with the fix.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} does not exist yet: run the notebook that makes it, or 'make reproduce'")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise ValueError(
                f"{path.name}, line {number} is not complete JSON: delete that line and run the same command again"
            ) from error
    return rows


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON lines, completely or not at all."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def drop_half_line(path: Path) -> None:
    """Take away a last line that a killed process left unfinished; a file that is not there is made, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole) + len(newline))  # in place: a kill now loses nothing


def keep_rows(path: Path, keys: dict[str, str], *, make: Callable[[list[str]], Iterable[dict]]) -> list[dict]:
    """Rows that take long to make, from a file that only ever grows: those that it lacks are made and appended.

    Args:
        keys: by id, a digest of all that the row depends on. A row of another key is left where it is, unread.
        make: yields the rows {id, ...} of these ids, in any order; each is in the file before the next is made.

    Returns:
        the rows {id, key, ...} in the order of `keys`.
    """
    drop_half_line(path)
    rows = {row["id"]: row for row in read_json_lines(path) if keys.get(row["id"]) == row["key"]}
    missing = [id_ for id_ in keys if id_ not in rows]
    if missing:
        with path.open("a", encoding="utf-8") as file:
            for row in make(missing):
                id_ = row["id"]
                rows[id_] = {"id": id_, "key": keys[id_]} | row
                file.write(json.dumps(rows[id_], ensure_ascii=False) + "\n")
                file.flush()
    return [rows[id_] for id_ in keys]


def digest(*parts) -> str:
    """A short digest (hex) of anything that is JSON: equal exactly when the parts are."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
