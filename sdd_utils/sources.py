"""Data sets from the hub and from files: read once, mapped to this project's columns, kept under `work/data`.

A source says where the rows are, at which revision, and which of its columns is which. What was read is kept as two
JSON-lines files, train and test, so a later run needs no network. Only standard variables count: HF_ENDPOINT,
HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdd_utils import ROOT

CACHE = ROOT / "work" / "data"
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 500  # rows kept out of training where a source has no split for that
TEST_MOST = 2_000
SHUFFLE_SEED = 0
STREAM_BUFFER = 10_000
_LOCAL = (".jsonl", ".json")
_ANSWER_LINE = re.compile(r"^####\s*(\S.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set's rows come from.

    Attributes:
        source: hub id `org/name@revision`, or the path of a JSON-lines file, relative to the repository.
        instruction, context, response, answer: names of its columns; "" where it has none. Without an answer
            column, the answer is what stands after "####" in the response, as in GSM8K.
        config: the hub's name of a subset.
        files: file by split, to read just these files of the repository.
        test_split: the split of rows to hold out; "" holds out a fixed sample of `train`.
        sample: rows to draw from `train`, seeded; 0 is all of them.
        stream: read only as much of `train` as the sample needs, shuffled in a buffer; for sets beyond any disk.
    """

    source: str
    instruction: str = "instruction"
    context: str = ""
    response: str = "response"
    answer: str = ""
    config: str = ""
    files: dict = dataclasses.field(default_factory=dict)
    test_split: str = ""
    sample: int = 0
    stream: bool = False


HUB = {
    "gsm8k": Source(
        source="openai/gsm8k@740312add88f781978c0658806c59bc2815b9866",
        config="main",
        instruction="question",
        response="answer",
        test_split="test",
    ),
    "dolly": Source(
        source="databricks/databricks-dolly-15k@bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a", context="context"
    ),
    "alpaca": Source(
        source="tatsu-lab/alpaca@dce01c9b08f87459cf36a430d809084718273017", context="input", response="output"
    ),
    # The folder of correct solutions; the repository holds the wrong ones, too. 50k rows are left after the row rule.
    "openmathinstruct1": Source(
        source="nvidia/OpenMathInstruct-1@4627efae6bd2ddcebb8acac00d513ffd8e00775c",
        instruction="question",
        response="generated_solution",
        answer="expected_answer",
        files={"train": "correct_solutions/train.jsonl", "validation": "correct_solutions/validation.jsonl"},
        test_split="validation",
        sample=60_000,
    ),
    "openmathinstruct2": Source(
        source="nvidia/OpenMathInstruct-2@469216e3f46f4dacf476b382e192485ea51a143e",
        instruction="problem",
        response="generated_solution",
        answer="expected_answer",
        sample=60_000,
        stream=True,
    ),
    # Running text: for calibration only, as nobody asked for it.
    "c4": Source(
        source="allenai/c4@1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        config="en",
        instruction="",
        response="text",
        sample=2_000,
        stream=True,
    ),
}


def own(name: str, keys: dict) -> Source:
    """A user's own source from the study file; ValueError, in one sentence, for a wrong key."""
    allowed = {field.name: field.type for field in dataclasses.fields(Source)}
    for key, value in keys.items():
        if key not in allowed:
            raise ValueError(f"own_data {name!r} has the unknown key {key!r}: allowed are {', '.join(allowed)}")
        if not isinstance(value, allowed[key]):
            raise ValueError(f"own_data {name!r}: {key} is {value!r}, it must be a {allowed[key].__name__}")
    if not keys.get("source"):
        raise ValueError(f"own_data {name!r} has no source: name a hub id org/name@revision, or a JSON-lines file")
    for key in ("config", "files", "test_split", "stream"):
        if keys.get(key) and keys["source"].endswith(_LOCAL):
            raise ValueError(f"own_data {name!r} has the key {key!r}, which is for hub data sets: delete it")
    return Source(**keys)


def rows(name: str, source: Source, *, split: str) -> list[dict]:
    """All rows of a split in their fixed order, `{id, instruction, context, response, answer}`; reads them if need be.

    Raises:
        FileNotFoundError: no such repository or file, no access, no network, or the connection broke.
        ValueError: a column that the source does not have.
        OSError: the disk is full.
    """
    return _kept(_folder(name, source), split)


@functools.cache
def _kept(folder: Path, split: str) -> list[dict]:
    with (folder / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def _folder(name: str, source: Source) -> Path:
    """The folder of a source's rows, named by everything they depend on; made whole or not at all."""
    parts = dataclasses.asdict(source)
    files = {"code": Path(__file__), "rows": local_file(source, name=name)}
    parts |= {what: hashlib.sha256(path.read_bytes()).hexdigest() for what, path in files.items() if path}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=CACHE))
        try:
            with told(f"data set {name!r} ({source.source})"):
                for split, found in _split(name, source).items():
                    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
                    (scratch / f"{split}.jsonl").write_text(lines, encoding="utf-8")
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another job of the sweep has read the same rows meanwhile
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _split(name: str, source: Source) -> dict[str, list[dict]]:
    """Train and test rows of a source. Rows without a held-out split give away a fixed sample of themselves."""
    train = _mapped(name, source, "train", rows=source.sample)
    random.Random(SHUFFLE_SEED).shuffle(train)
    if source.test_split:
        test = _mapped(name, source, source.test_split, rows=TEST_MOST)
    else:
        held_out = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(train))))
        test, train = train[:held_out], train[held_out:]
    return {"train": train, "test": test}


def _mapped(name: str, source: Source, split: str, *, rows: int) -> list[dict]:
    """Up to `rows` rows of one split (0: all) with this project's columns; ids count them in the source's order."""
    streaming = source.stream and split == "train"
    found = _load(source, split, streaming=streaming)
    wanted = {key: getattr(source, key) for key in ("instruction", "context", "response", "answer")}
    columns = found.column_names or list(next(iter(found), {}))  # a stream may not know them before its first row
    if missing := [column for column in wanted.values() if column and column not in columns]:
        raise ValueError(f"it has no column {missing[0]!r} but {', '.join(columns)}: name the columns in own_data")
    if rows and streaming:
        found = found.shuffle(seed=SHUFFLE_SEED, buffer_size=STREAM_BUFFER).take(rows)
    elif rows:
        found = found.shuffle(seed=SHUFFLE_SEED).select(range(min(rows, len(found))))
    return [{"id": f"{name}-{split}-{index:06d}", **_columns(row, wanted)} for index, row in enumerate(found)]


def _load(source: Source, split: str, *, streaming: bool):
    import datasets  # here, for its import takes longer than reading the rows that are kept

    local = local_file(source)
    if local:
        return datasets.load_dataset("json", data_files=str(local), split="train")
    repo, _, revision = source.source.partition("@")
    return datasets.load_dataset(
        repo,
        source.config or None,
        data_files=source.files or None,
        split=split,
        revision=revision or None,
        streaming=streaming,
    )


def _columns(row: dict, wanted: dict[str, str]) -> dict[str, str]:
    given = {key: row[column] if column else None for key, column in wanted.items()}
    values = {key: str("" if value is None else value).strip() for key, value in given.items()}  # 0 is an answer
    if not wanted["answer"]:
        last = _ANSWER_LINE.findall(values["response"])
        values["answer"] = last[-1] if last else ""
    return values


def local_file(source: Source, *, name: str = "") -> Path | None:
    """The JSON-lines file of a source that is one, or None for a hub id. Raises FileNotFoundError."""
    if not source.source.endswith(_LOCAL):
        return None
    if not (path := ROOT / source.source).is_file():
        raise FileNotFoundError(f"data set {name!r}: the file {source.source!r} does not exist (own_data key source)")
    return path


@contextmanager
def told(where: str) -> Iterator[None]:
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
