"""Every data set as the same columns: `id, instruction, context, response, answer`, all of them strings.

`answer` is what a response can be checked against; it is "" where nothing is checkable. `sources` names the data
sets of the hub, `source_rows` reads them and files, and `offline` makes two without a download.
"""

import hashlib
import json
import math

from sdd_utils.data import source_rows, sources
from sdd_utils.data.offline import OFFLINE

COLUMNS = ("id", "instruction", "context", "response", "answer")
SPLITS = ("train", "test")


def data_set_names() -> tuple[str, ...]:
    """The data sets that `load_rows` knows by name."""
    return (*OFFLINE, *sources.HUB)


def load_rows(
    name: str, *, split: str, rows: int, own_data: dict | None = None, max_response_words: int = 0
) -> list[dict]:
    """The first `rows` rows (0: all) of a data set in its fixed order, as dicts with the keys `COLUMNS`.

    Rows whose response is empty or longer than `max_response_words` (0: no limit) are left out before they are
    counted, and so are train rows that ask what a test row asks; `left_out_rows` says how many. The train rows also
    serve as calibration text.

    Args:
        own_data: a user's own sources by name, see `sources.Source`.

    Raises:
        ValueError: an unknown data set or split, or the data set has fewer rows.
        FileNotFoundError, OSError: see `source_rows.source_rows`.
    """
    available, reasons = _sifted(name, split=split, own_data=own_data, max_response_words=max_response_words)
    if not available:
        raise ValueError(f"{name} has no {split} rows (left out: {reasons}): it needs more rows, with other questions")
    if not 0 <= rows <= len(available):
        raise ValueError(f"{rows} rows of {name} {split} cannot be had: ask for 1 to {len(available)}, or 0 for all")
    return [dict(row) for row in available[: rows or None]]


def left_out_rows(
    name: str, *, split: str, own_data: dict | None = None, max_response_words: int = 0
) -> dict[str, int]:
    """How many rows of a split the row rule leaves out, by reason."""
    return _sifted(name, split=split, own_data=own_data, max_response_words=max_response_words)[1]


def _sifted(name: str, *, split: str, own_data: dict | None, max_response_words: int) -> tuple[list, dict]:
    """The rows of a split that pass the row rule, and the number of the others by reason."""
    own_data, reasons = own_data or {}, {}
    rows = _rows(name, split=split, own_data=own_data)
    if name in own_data or name not in OFFLINE:  # the offline sets share no question by the way they are made
        rows, reasons["asked in test"] = _apart(rows, name=name, split=split, own_data=own_data)
    words = [(row, len(row["response"].split())) for row in rows]
    limit = max_response_words or math.inf
    reasons |= {"empty": sum(n == 0 for _, n in words), "too long": sum(n > limit for _, n in words)}
    return [row for row, n in words if 0 < n <= limit], reasons


def _apart(rows: list[dict], *, name: str, split: str, own_data: dict) -> tuple[list, int]:
    """Train rows that ask nothing that a test row asks, and how many do; test rows stay as they are."""
    test = _rows(name, split="test", own_data=own_data) if split == "train" else []
    asked = {source_rows.question_key(row) for row in test} - {""}
    kept = [row for row in rows if source_rows.question_key(row) not in asked] if asked else rows
    return kept, len(rows) - len(kept)


def _rows(name: str, *, split: str, own_data: dict) -> list[dict]:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}")
    if name in own_data:
        return source_rows.source_rows(name, sources.own_source(name, own_data[name]), split=split)
    if name in sources.HUB:
        return source_rows.source_rows(name, sources.HUB[name], split=split)
    if name in OFFLINE:
        return OFFLINE[name](split)
    allowed = ", ".join([*data_set_names(), *own_data])
    raise ValueError(f"data set {name!r} is unknown: use one of {allowed} (study key data_sets)")


def calibration_set(names: list[str], *, rows: int, own_data: dict | None = None, skipped: int = 0) -> list[dict]:
    """`rows` training rows in equal parts per data set, the same number of each.

    Args:
        skipped: how many such sets came before, so that 1 gives a second set, of other rows.

    Raises:
        ValueError: no data set, fewer rows than data sets, or what `load_rows` raises.
    """
    if not 0 < len(names) <= rows:
        raise ValueError(
            f"{rows} calibration rows of {len(names)} data sets: name a data set, and a row of each at least"
        )
    each = rows // len(names)
    wanted = slice(skipped * each, (skipped + 1) * each)
    loaded = (load_rows(name, split="train", rows=wanted.stop, own_data=own_data)[wanted] for name in names)
    return [row for own in loaded for row in own]


def text_of(row: dict) -> str:
    """A row as running text, for calibration: instruction, context and response, whichever there are."""
    return "\n".join(part for part in (row["instruction"], row["context"], row["response"]) if part)


def fingerprint(rows: list[dict]) -> str:
    """The sha256 (hex) of the rows as canonical JSON: equal exactly when columns, values and order are."""
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def question_of(row: dict) -> str:
    """The instruction, with its context below it where there is one."""
    return f"{row['instruction']}\n\n{row['context']}" if row["context"] else row["instruction"]
