"""Rows of a user's CSV or Parquet file: every cell of a CSV file is text, in Parquet values keep their types.

CSV is what RFC 4180 describes: commas, a line of column names, quotes around what holds commas or line breaks.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from sdd_utils.data.json_rows import decoded

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """Every row and where it stands, such as ("row 3", {...}), counted without the line of names.

    Raises:
        ValueError: what is wrong and where, in one sentence: no rows, another separator or encoding, a column's name
            twice, a row with more or fewer cells than there are names, no whole Parquet file.
    """
    rows = list(_of_parquet(path) if path.suffix.lower() == ".parquet" else _of_csv(path))
    if not rows:
        raise ValueError("it holds no rows: write a row for each example")
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _of_csv(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    lines = csv.reader(io.StringIO(decoded(path.read_bytes()), newline=""), strict=True)
    names: list[str] = []
    try:
        for line in lines:
            if not line:  # an empty line
                continue
            if not names:
                names = _checked_names(line)
            elif len(line) != len(names):
                raise ValueError(
                    f"the row that ends on line {lines.line_num} has {len(line)} cells and {len(names)} columns: "
                    "put cells with commas or line breaks into double quotes"
                )
            else:
                yield dict(zip(names, line, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num} is no CSV ({error}): save it with cells in double quotes") from None


def _checked_names(names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it has the column {twice[0]!r} twice: rename one")
    if other := [name for sign, name in _OTHER_SEPARATORS.items() if len(names) == 1 and sign in names[0]]:
        raise ValueError(f"its columns are separated by {other[0]}: save it with commas")
    return names


def _of_parquet(path: Path) -> Iterator[dict]:
    import pyarrow  # here, for its import takes longer than reading the rows that are kept
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"it is no whole Parquet file ({str(error).splitlines()[0]}): copy it again") from None
