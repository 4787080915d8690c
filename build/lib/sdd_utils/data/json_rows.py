"""Rows of a user's JSON file, exactly as written: nothing becomes a date or a float, and numbers keep every digit.

JSON lines hold one object a line; a file may also hold one list of objects. Either may be compressed by gzip, and be
in UTF-8, UTF-16 or UTF-32, as `json.detect_encoding` tells them apart.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

_GZIP = b"\x1f\x8b"


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """Every row and where it stands, such as ("line 3", {...}). Numbers are given as the text that stands in the file.

    Raises:
        ValueError: what is wrong and where, in one sentence: no rows, a cut file, another encoding, a line that is
            no JSON object, a key twice in one object, NaN.
    """
    text = decoded(_bytes(path))
    rows = list(_of_list(text) if text.lstrip().startswith("[") else _of_lines(text))
    if not rows:
        raise ValueError("it holds no rows: write one JSON object a line")
    return rows


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it is no whole gzip file ({error}): copy it again") from None


def decoded(content: bytes) -> str:
    """Text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark; ValueError names the line of another."""
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise ValueError(f"line {line} is not {encoding.upper()}: save the file as UTF-8") from None


def _of_lines(text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: texts may hold other line separators
        if line.strip():
            yield (where := f"line {number}"), _object(where, _parsed(where, line))


def _of_list(text: str) -> Iterator[tuple[str, dict]]:
    for number, value in enumerate(_parsed("it", text), start=1):
        yield (where := f"row {number}"), _object(where, value)


def _object(where: str, value) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f'{where} holds no JSON object: write {{"column": "value"}}')
    return value


def _parsed(where: str, text: str):
    """A JSON value. `json` itself keeps the last of two equal keys, and reads NaN, which JSON does not have."""
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_refused, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}" if where == "it" else where
        raise ValueError(f"{at} is not complete JSON ({error.msg}, character {error.colno}): correct it") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: keep the columns that are named") from None
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _distinct(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"has the key {twice!r} twice: keep one of {[value for key, value in pairs if key == twice]}")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"holds {constant}, which JSON does not have: write null")
