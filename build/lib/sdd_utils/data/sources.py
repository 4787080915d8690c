"""Where data sets come from: those of the hub that the project knows by name, and a user's own."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sdd_utils import ROOT

_TABLES = (".csv", ".parquet")
_LOCAL = (".jsonl", ".json", ".jsonl.gz", ".json.gz", *_TABLES)  # in upper case, too
_OTHER_FILES = (".gz", ".tsv", ".txt", ".xlsx", ".zip")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@\S+)?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set's rows come from.

    Attributes:
        source: hub id `org/name@revision`, or the path of a file as `json_rows` or `table_rows` reads it, relative to
            the repository.
        instruction, context, response, answer: names of its columns; "" where it has none. Without an answer
            column, the answer is what `cells.answer_line` finds.
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
    # The folder of correct solutions; the repository also holds the wrong ones. 50k rows are left after the row rule.
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


def own_source(name: str, keys: dict) -> Source:
    """A user's own source from the study file; ValueError, in one sentence, for a wrong key."""
    allowed = {field.name: field.type for field in dataclasses.fields(Source)}
    for key, value in keys.items():
        if key not in allowed:
            raise ValueError(f"own_data {name!r} has the unknown key {key!r}: allowed are {', '.join(allowed)}")
        if not isinstance(value, allowed[key]):
            raise ValueError(f"own_data {name!r}: {key} is {value!r}, it must be a {allowed[key].__name__}")
    if not keys.get("source"):
        raise ValueError(f"own_data {name!r} has no source: name a hub id org/name@revision, or a file")
    local = _is_local(keys["source"])
    for key in ("config", "files", "test_split", "stream"):
        if keys.get(key) and local:
            raise ValueError(f"own_data {name!r} has the key {key!r}, which is for hub data sets: delete it")
    no_hub_id = not _HUB_ID.fullmatch(keys["source"]) or keys["source"].lower().endswith(_OTHER_FILES)
    if not local and (no_hub_id or (ROOT / keys["source"]).exists()):
        raise ValueError(
            f"own_data {name!r}: source {keys['source']!r} is no hub id org/name@revision and no file whose name ends "
            f"in {', '.join(_LOCAL)}: write the rows as JSON lines"
        )
    return Source(**keys)


def is_table(path: Path) -> bool:
    """Whether a local file is one that `table_rows` reads."""
    return path.name.lower().endswith(_TABLES)


def _is_local(source: str) -> bool:
    return source.lower().endswith(_LOCAL)


def local_file(source: Source, *, name: str = "") -> Path | None:
    """The file of a source that is one, or None for a hub id. Raises FileNotFoundError."""
    if not _is_local(source.source):
        return None
    path = ROOT / Path(source.source).expanduser()
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise FileNotFoundError(
            f"data set {name!r}: the file {source.source!r} does not exist, or may not be read (own_data key source)"
        )
    return path
