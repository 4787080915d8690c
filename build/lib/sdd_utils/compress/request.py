"""What a user asks for: a model, a data set, how much to cut; and how the cut becomes a number of layers."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from sdd_utils.data import json_rows, source_rows, sources, table_rows
from sdd_utils.data.rows import data_set_names
from sdd_utils.models import architecture

OWN = "own"  # the name of a data set that has none of its own
MOST_ROWS = 800  # training rows where the user names no number: as many as the laptop study has of a set
BYTES_PER_PARAMETER = 2  # of the weights that are written, in bfloat16
_UNITS = {"MB": 1e6, "GB": 1e9, "": 1, "%": 0.01}
_CUT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|MB|GB|)", re.IGNORECASE)
_ALLOWED = "a number of layers (4), a share of the parameters (16%), or the size that the weights may have (6GB)"
# Columns by the names that data sets give them, the likeliest first.
_MESSAGES, NONE = ("messages", "conversations"), "-"
_COLUMNS = {
    "instruction": ("instruction", "question", "prompt", "problem", "query", "input", *_MESSAGES),
    "response": ("response", "output", "completion", "solution", "reply", *_MESSAGES, "answer"),
    "context": ("context", "passage", "input"),
    "answer": ("answer",),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for. Paths are relative to the folder that the command is called in.

    Attributes:
        model: as the study key `model` names it.
        data: a file (JSON lines, JSON, CSV, Parquet), a data set's name, or a hub id org/name[@revision].
        cut: what `layers_to_cut` reads.
        arm: how the pruned model is healed, see `data.arms`.
        rows: training rows, the first ones of the set's fixed order; 0 is all, None `MOST_ROWS` at most.
        columns: names of columns, see `chosen_columns`.
        seed: of sampling and training.
    """

    model: str
    data: str
    cut: str = "16%"
    arm: str = "self_data_ft"
    rows: int | None = None
    columns: dict = field(default_factory=dict)
    seed: int = 0


def layers_to_cut(cut: str, config) -> int:
    """How many layers to remove.

    A share of the parameters becomes the block size that comes nearest; a size in memory the smallest one whose weights
    fit in, at `BYTES_PER_PARAMETER`.

    Args:
        cut: "4" layers (or the number), "16%" of the parameters, or "6GB" (10^9 bytes) that the weights may have.
        config: of the model.

    Raises:
        ValueError: none of these, or the model cannot be cut so; in one sentence.
    """
    read = _CUT.fullmatch(str(cut).strip())
    if not read or not float(read[1]):
        raise ValueError(f"cut {cut!r} cannot be read: use {_ALLOWED}")
    amount, unit = float(read[1]) * _UNITS[read[2].upper()], read[2].upper()
    layers, whole = parameters_of(config)
    if len(layers) < 2:
        raise ValueError(f"cut {cut!r} is impossible: the model has one layer")
    if unit:
        return _by_share(cut, amount, layers, whole) if unit == "%" else _by_size(cut, round(amount), layers, whole)
    if amount != int(amount) or not 1 <= amount < len(layers):
        raise ValueError(f"cut {cut!r} is impossible: a model of {len(layers)} layers allows 1 to {len(layers) - 1}")
    return int(amount)


def _by_share(cut: str, share: float, layers: list[int], whole: int) -> int:
    each = sum(layers) / len(layers)
    wanted = round(share * whole / each)
    if not 1 <= wanted < len(layers):
        allowed = f"{each / whole:.1%} to {(len(layers) - 1) * each / whole:.1%}"
        raise ValueError(f"cut {cut!r} is impossible: whole layers of this model are {allowed} of its parameters")
    return wanted


def _by_size(cut: str, size: int, layers: list[int], whole: int) -> int:
    """The smallest block size whose smallest block is large enough, as layers may differ in size."""
    least = [min(sum(layers[start : start + n]) for start in range(len(layers) - n + 1)) for n in range(len(layers))]
    sizes = [BYTES_PER_PARAMETER * (whole - removed) for removed in least]
    if size >= sizes[0] or size < sizes[-1]:
        allowed = f"its weights take {shown_size(sizes[0])}, and {shown_size(sizes[-1])} with one layer"
        raise ValueError(f"cut {cut!r} is impossible: {allowed}")
    return next(n for n, left in enumerate(sizes) if left <= size)


def parameters_of(config) -> tuple[list[int], int]:
    """Parameters of each layer and of the whole model, counted without weights."""
    model = architecture.without_weights(config)
    layers = [sum(part.numel() for part in layer.parameters()) for layer in architecture.decoder_layers(model)]
    return layers, architecture.account_of(model).parameters


def shown_size(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def model_of(request: Request) -> str:
    """The model's name as `models.store` reads it, wherever the command is called."""
    path = Path(request.model).expanduser()
    return str(path.absolute()) if path.exists() else request.model


def data_set_of(request: Request) -> tuple[str, dict]:
    """The name of the data set, and the study key `own_data` that describes it where it has no name of its own.

    Raises:
        ValueError, FileNotFoundError: no such data, or columns that cannot be guessed; in one sentence.
    """
    if request.data == "c4":
        raise ValueError("data 'c4' is running text, and nobody asked for it: use questions with their answers")
    if request.data in data_set_names() and not Path(request.data).exists():
        return request.data, {}
    path = Path(request.data).expanduser()
    source = str(path.absolute()) if path.exists() else request.data
    found = sources.own_source(OWN, {"source": source})
    local = sources.local_file(found, name=request.data)
    with source_rows.explain_data_errors(f"data {request.data!r}"):
        columns = _columns_of_file(local) if local else _columns_on_hub(found)
    return OWN, {OWN: {"source": source} | chosen_columns(columns, given=request.columns, where=request.data)}


def _columns_on_hub(source: sources.Source) -> list[str]:
    """The columns of a data set's training rows, which stay in the hub's cache."""
    import datasets  # here, for its import takes longer than most else

    repo, _, revision = source.source.partition("@")
    return datasets.load_dataset(repo, split="train", revision=revision or None).column_names


def _columns_of_file(path: Path) -> list[str]:
    rows = (table_rows if sources.is_table(path) else json_rows).read_rows(path)
    return list(dict.fromkeys(column for _, row in rows for column in row))


def chosen_columns(columns: list[str], *, given: dict[str, str], where: str) -> dict[str, str]:
    """Which column of a data set holds what: as given, else by its name.

    Args:
        given: names by `instruction`, `response`, `context`, `answer`; `NONE` is no column.

    Raises:
        ValueError: a column that there is not, or one that is needed and has no name that says so.
    """
    if unknown := [(key, name) for key, name in given.items() if name not in (*columns, NONE)]:
        key, name = unknown[0]
        raise ValueError(
            f"data {where!r} has no column {name!r} but {', '.join(columns)}: name one of them by {key.upper()}=…"
        )
    chosen = dict(given)
    for key, names in _COLUMNS.items():
        if key not in chosen and (name := _known(columns, names, taken=chosen)):
            chosen[key] = name
    if missing := [key for key in ("instruction", "response") if chosen.get(key, NONE) == NONE]:
        raise ValueError(
            f"data {where!r} has the columns {', '.join(columns) or 'none'}, and none is known as the {missing[0]}: "
            f"name it by {missing[0].upper()}=…"
        )
    return {key: name for key, name in chosen.items() if name != NONE}


def _known(columns: list[str], names: tuple[str, ...], *, taken: dict[str, str]) -> str:
    """The first of these names that there is and nothing else has; messages hold questions and answers both."""
    left = [name for name in names if name in columns and (name not in taken.values() or name in _MESSAGES)]
    return left[0] if left else ""
