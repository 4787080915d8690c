"""Data sets from the hub and from files: read once, mapped to this project's columns, kept under `work/data`.

A source says where the rows are, at which revision, and which of its columns is which. What was read is kept as two
JSON-lines files, train and test, so a later run needs no network. Only standard variables count: HF_ENDPOINT,
HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import dataclasses
import errno
import functools
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sdd_utils import ROOT
from sdd_utils.base.files import digest, file_sha256, read_json_lines, write_json_lines
from sdd_utils.data import cells, json_rows, sources, table_rows

VERSION = 2  # raise it when a change of the code changes rows: what was read before then is read anew
CACHE = ROOT / "work" / "data"
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500  # rows kept out of training where a source has no split for that
TEST_MOST = 2_000
SHUFFLE_SEED = 0
STREAM_BUFFER = 10_000


def source_rows(name: str, source: sources.Source, *, split: str) -> list[dict]:
    """All rows of a split in their fixed order, `{id, instruction, context, response, answer}`; reads them if need be.

    Raises:
        FileNotFoundError: no such repository or file, no access, no network, or the connection broke.
        ValueError: a column that the source does not have.
        OSError: the disk is full.
    """
    return _kept(_folder(name, source), split)


@functools.cache
def _kept(folder: Path, split: str) -> list[dict]:
    return read_json_lines(folder / f"{split}.jsonl")


def _folder(name: str, source: sources.Source) -> Path:
    """The folder of a source's rows, named by everything they depend on; made whole or not at all."""
    parts = dataclasses.asdict(source)
    local = sources.local_file(source, name=name)
    folder = CACHE / f"{name}-{digest(parts, VERSION, local and file_sha256(local))[:12]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=CACHE))
        try:
            with explain_data_errors(f"data set {name!r} ({source.source})"):
                for split, rows in _split(name, source).items():
                    write_json_lines(scratch / f"{split}.jsonl", rows)
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another job of the sweep has read the same rows meanwhile
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _split(name: str, source: sources.Source) -> dict[str, list[dict]]:
    """Train and test rows of a source. Rows without a held-out split give away a fixed sample of themselves.

    Its size is a share of the different questions, for `rows` leaves out the train rows that ask what a test row asks.
    """
    train = _mapped(name, source, "train", rows=source.sample)
    random.Random(SHUFFLE_SEED).shuffle(train)
    if source.test_split:
        test = _mapped(name, source, source.test_split, rows=TEST_MOST)
    else:
        questions = len({question_key(row) or row["id"] for row in train})
        held_out = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * questions)), questions - 1)
        test, train = train[:held_out], train[held_out:]
    return {"train": train, "test": test}


def question_key(row: dict) -> str:
    """Equal for rows that ask the same, whatever their case and white space; "" for running text."""
    return " ".join(f"{row['instruction']} {row['context']}".split()).casefold()


def _mapped(name: str, source: sources.Source, split: str, *, rows: int) -> list[dict]:
    """Up to `rows` rows of one split (0: all) with this project's columns; ids count them in the source's order."""
    names = {key: getattr(source, key) for key in ("instruction", "context", "response", "answer")}
    local = sources.local_file(source)
    columns, found = _from_file(local, rows=rows) if local else _from_hub(source, split, rows=rows)
    if missing := [column for column in names.values() if column and column not in columns]:
        raise ValueError(f"it has no column {missing[0]!r} but {', '.join(columns)}: name the columns in own_data")
    return [
        {"id": f"{name}-{split}-{index:06d}", **_columns(row, names, where=where)}
        for index, (where, row) in enumerate(found)
    ]


def _from_file(path: Path, *, rows: int) -> tuple[list[str], list[tuple[str, dict]]]:
    """The columns of a file, and its rows, or a sample of them, with where each stands."""
    found = (table_rows if sources.is_table(path) else json_rows).read_rows(path)
    columns = list(dict.fromkeys(column for _, row in found for column in row))
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(found))[:rows] if rows else range(len(found))
    return columns, [found[index] for index in order]


def _from_hub(source: sources.Source, split: str, *, rows: int) -> tuple[list[str], Iterable[tuple[str, dict]]]:
    """The same for a data set of the hub."""
    streaming = source.stream and split == "train"
    loaded = _load(source, split, streaming=streaming)
    columns = loaded.column_names or list(next(iter(loaded), {}))  # a stream may not know them before its first row
    if rows and streaming:
        loaded = loaded.shuffle(seed=SHUFFLE_SEED, buffer_size=STREAM_BUFFER).take(rows)
    elif rows:
        loaded = loaded.shuffle(seed=SHUFFLE_SEED).select(range(min(rows, len(loaded))))
    return columns, ((f"row {number}", row) for number, row in enumerate(loaded, start=1))


def _load(source: sources.Source, split: str, *, streaming: bool):
    import datasets  # here, for its import takes longer than reading the rows that are kept

    repo, _, revision = source.source.partition("@")
    return datasets.load_dataset(
        repo,
        source.config or None,
        data_files=source.files or None,
        split=split,
        revision=revision or None,
        streaming=streaming,
    )


def _columns(row: dict, names: dict[str, str], *, where: str) -> dict[str, str]:
    """A row's columns as text. Raises ValueError, which says where the row stands."""
    try:
        values = {
            key: cells.text_of_cell(row.get(column) if column else None, column=column, key=key)
            for key, column in names.items()
        }
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return values if names["answer"] else values | {"answer": cells.answer_line(values["response"])}


@contextmanager
def explain_data_errors(where: str) -> Iterator[None]:
    """Say in one sentence why a data set cannot be had, and what to do.

    Args:
        where: what is being read, to begin the sentence with.
    """
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise FileNotFoundError(f"{where} is gated: accept its licence on the hub and set HF_TOKEN") from error
        raise FileNotFoundError(f"{where} cannot be found on the hub: check the spelling, or set HF_TOKEN") from error
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).splitlines()[0]}") from error
    except (OfflineModeIsEnabled, ConnectionError, DatasetsError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(f"{where}: the disk is full: free some space, or set HF_HOME to another disk") from error
        if isinstance(error, FileNotFoundError) and error.filename:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"{where} could not be read: {reason}; once the hub is reachable, run the same command again: "
            "what has arrived is kept"
        ) from error
