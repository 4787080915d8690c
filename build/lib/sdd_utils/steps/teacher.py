"""The unpruned model's distribution of the next token, written once and read by every training that learns from it.

Of each trained position the `K` likeliest tokens are kept with their log-probabilities, and the mass of all others.
A folder holds parts, safetensors files that are written whole; a rerun reads what is there and adds what is missing.
A row is known by its tokens, and a part by the weights, precision and code that it was made with, so that seeds, block
sizes, capacities and sets share what they have in common.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from sdd_utils.base import precision
from sdd_utils.base.files import digest, write_bytes
from sdd_utils.base.import_graph import code_digest
from sdd_utils.engine import packed_linear
from sdd_utils.models import architecture, store
from sdd_utils.steps import distillation_loss

K = 64  # tokens of a distribution that are kept one by one
PART = 4096  # positions from which on a part is written: what a kill costs at most
_LOW = 2**16  # a token is kept as its low 16 bits, and its high 8 bits where the vocabulary is larger

Places = dict[str, tuple[Path, int, int]]  # where a row's positions lie: part, start, end


def depends_on(model: str | Path) -> str:
    """Digest of what all distributions of a model depend on, besides a row's tokens: weights, precision, code."""
    code = code_digest([__name__], rooms=("steps", "engine"))
    return digest(store.identity(store.find_model(str(model))), precision.dtype_name(), K, code)


def row_key(input_ids: list[int], trained: int) -> str:
    """What a row is known by: its tokens, and how many of them, the last ones, are trained."""
    return digest(input_ids, trained)


def write(model: str | Path, rows: dict[str, list[dict]], *, folder: Path) -> dict[str, dict]:
    """Write the distributions that a folder lacks; nothing is loaded if it lacks none.

    Args:
        model: name or folder of the unpruned model.
        rows: by source of responses, {input_ids, completion_mask} per row, see `training_rows`; those that are longer
            than the model's context are left out, as no training reads them.

    Returns:
        by source: {rows, tokens, bytes_per_token, rest}: distributions there are, what they take on disk, and the mean
        mass of the rest, 0..1.
    """
    depends = depends_on(model)
    asked = {source: _by_key(model, own) for source, own in rows.items()}
    wanted = {key: ids for own in asked.values() for key, ids in own.items()}
    _drop_stale(folder, depends, wanted)
    missing, known = {}, set(places(folder, depends=depends))
    for source, own in asked.items():
        missing[source] = {key: row for key, row in own.items() if key not in known}
        known |= own.keys()
    if any(missing.values()):
        loaded, _ = store.load_model(model)
        with packed_linear.packed_linears(loaded):
            for source, own in missing.items():
                _write_parts(loaded, own, folder=folder, source=source, depends=depends)
    there = places(folder, depends=depends)
    return {source: _statistics(there, own) for source, own in asked.items()}


def _by_key(model: str | Path, rows: list[dict]) -> dict[str, tuple[list[int], int]]:
    longest = architecture.context_length(store.load_config(model))
    sized = [(row["input_ids"], sum(row["completion_mask"])) for row in rows]
    return {row_key(*row): row for row in sized if len(row[0]) <= longest}


def _write_parts(model, rows: dict[str, tuple], *, folder: Path, source: str, depends: str) -> None:
    part: list[tuple[str, Tensor, Tensor]] = []
    words = model.config.get_text_config().vocab_size
    for number, (key, row) in enumerate(tqdm(rows.items(), desc=f"teacher on {source}", unit="row", disable=None), 1):
        part.append((key, *_distributions(model, *row)))
        if number == len(rows) or sum(len(ids) for _, ids, _ in part) >= PART:
            _write_part(part, folder=folder, source=source, depends=depends, words=words)
            part = []


@torch.inference_mode()
def _distributions(model, input_ids: list[int], trained: int) -> tuple[Tensor, Tensor]:
    """(trained, k) tokens and (trained, k + 1) log-probabilities; a row is read alone, so no other changes it."""
    ids = torch.tensor([input_ids], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=trained + 1, use_cache=False).logits
    log_probs = torch.log_softmax(logits[0, -trained - 1 : -1].float(), dim=-1)  # some models give those of all tokens
    return tuple(tensor.cpu() for tensor in distillation_loss.coarse(log_probs, K))


def _write_part(part: list[tuple], *, folder: Path, source: str, depends: str, words: int) -> None:
    keys, ids, log_probs = zip(*part, strict=True)
    ends = torch.tensor([*map(len, ids)]).cumsum(0)
    tokens = torch.cat(ids)
    tensors = {"log_probs": torch.cat(log_probs).half(), "ends": ends, "ids": (tokens % _LOW).to(torch.uint16)}
    if words > _LOW:
        tensors["high_ids"] = (tokens // _LOW).to(torch.uint8)
    said = json.dumps({"depends": depends, "keys": keys})  # in one, for safetensors orders several at random
    content = save(tensors, metadata={"made": said})
    write_bytes(folder / f"{source}-{digest(keys, depends)}.safetensors", content)


def places(folder: Path, *, depends: str) -> Places:
    """Where the distributions of each row lie, by `row_key`; parts that were made with anything else do not count."""
    found: Places = {}
    for path, keys, ends in _parts(folder, depends):
        starts = [0, *ends[:-1]]
        found |= {key: (path, start, end) for key, start, end in zip(keys, starts, ends, strict=True)}
    return found


def _parts(folder: Path, depends: str) -> Iterator[tuple[Path, list[str], list[int]]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as part:
            made = json.loads(part.metadata()["made"])
            if made["depends"] == depends:
                yield path, made["keys"], part.get_tensor("ends").tolist()


def _drop_stale(folder: Path, depends: str, wanted: Iterable[str]) -> None:
    """Delete the parts that no row of the present study is read from."""
    live = {path for path, keys, _ in _parts(folder, depends) if not set(keys).isdisjoint(wanted)}
    for path in {*folder.glob("*.safetensors")} - live:
        path.unlink()


def read(place: tuple[Path, int, int]) -> tuple[Tensor, Tensor]:
    """One row's distributions, (positions, k) int64 tokens and (positions, k + 1) float32 log-probabilities.

    The latter are normalised anew, as half precision has rounded them.
    """
    path, start, end = place
    with safe_open(path, "pt") as part:
        tensors = {name: part.get_slice(name)[start:end] for name in part.keys() if name != "ends"}  # noqa: SIM118
    ids = tensors["ids"].to(torch.int64)
    if "high_ids" in tensors:
        ids += _LOW * tensors["high_ids"].to(torch.int64)
    return ids, tensors["log_probs"].float().clamp(min=distillation_loss.NEVER).log_softmax(dim=-1)


def _statistics(known: Places, asked: dict[str, tuple]) -> dict:
    own = [known[key] for key in asked]
    rest = torch.cat([read(place)[1][:, -1].exp() for place in own])
    part_tokens: dict[Path, int] = {}
    for path, start, end in known.values():
        part_tokens[path] = part_tokens.get(path, 0) + end - start
    size = sum((end - start) / part_tokens[path] * path.stat().st_size for path, start, end in own)
    return {"rows": len(own), "tokens": len(rest), "bytes_per_token": size / len(rest), "rest": float(rest.mean())}


def check_complete(known: Places, rows: list[dict]) -> None:
    """Raise ValueError if a row {input_ids, completion_mask} that will be trained has no distributions."""
    keys = [row_key(row["input_ids"], sum(row["completion_mask"])) for row in rows]
    missing = sum(key not in known for key in keys)
    if missing:
        raise ValueError(
            f"{missing} of {len(keys)} rows have no distributions of the unpruned model as it is now: run "
            "notebooks/03_self_data_distillation.ipynb again"
        )
