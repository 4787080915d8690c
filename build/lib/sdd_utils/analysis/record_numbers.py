"""The numbers that a record holds, each with what is known of its error.

A number is of one of these kinds:

    exact      a count, a size or a choice
    rounded    follows from the original's weights and fixed texts alone, so only rounding moves it
    paired     a score of the original or of a pruned model: the same, with a value per document
    sampled    has a standard error otherwise: from values per document, row, step or tensor, or a recorded interval
    following  follows from other numbers and has no error of its own

Values per document are not numbers here: they give the standard errors. What lm-eval reports besides a task's own
measures (`all`) is left out, and so are times (`seconds`), settings, which the records' parameters hold, and a
training's `budget`, which is arithmetic on its tokens.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

EXACT, ROUNDED, PAIRED, SAMPLED, FOLLOWING = "exact", "rounded", "paired", "sampled", "following"
# The first pattern that a number's name matches says its kind; other numbers follow from something.
_KINDS = {
    r"^choices\.|\.kept_rows_ft\.training\.(rows|steps)$": FOLLOWING,  # of texts that are sampled
    r"(^|\.)(map|block_influence|distance)$|^nll\.original$": ROUNDED,
    r"^nll\.|\.words_distilled$|\.loss$": SAMPLED,
    r"(^|\.)(n|rows|steps|layers|kept_layers|start|words_original|lerp_above|read_tokens|removed)$": EXACT,
    r"^(accounting|dropped)\.|\.sft\.training\.(trained|seen)_tokens$": EXACT,
}
_ESTIMATES = ("value", "recovery", "difference", "rho", "share")  # what an interval is about, by name
_LABELS = ("arm", "strategy", "draw", "block_size", "data_set", "t")  # by which an entry of a list is known
_LEFT_OUT = ("all", "budget", "documents", "seconds")
_SETTINGS = ("limit", "chance", "shots", "block_size", "t", "draw", "seed")
_NORMAL = 1.959964  # standard errors from the middle of a 95 % interval to its end


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number, or several that are compared as one.

    Attributes:
        value: of any shape; () is a single number.
        se, df: standard error and its degrees of freedom; of sampled ones only.
        n: of how many zeros and ones it is the mean; 0 where it is no share.
        documents: (documents,) values whose mean it is; of paired ones only.
    """

    kind: str
    value: np.ndarray
    se: float = 0.0
    df: float = np.inf
    n: int = 0
    documents: np.ndarray | None = None


def numbers_of(record: dict) -> dict[str, Number]:
    """Every number of a record's metrics, by its place in them, such as `arms.sft.scores.facts`.

    The record of 09 repeats what the others hold; of it only recoveries and differences count.
    """
    found = dict(_numbers(record["metrics"], ""))
    if record["step"] == "results":
        return {name: number for name, number in found.items() if number.kind == SAMPLED}
    if record["step"] in ("pruning", "selection"):
        scores = {name: number for name, number in found.items() if np.size(number.documents) > 1}
        return found | {name: replace(number, kind=PAIRED) for name, number in scores.items()}
    if record["params"].get("equal_tokens"):  # then texts that are sampled decide where all arms stop
        counts = [name for name in found if re.search(r"\.training\.\w+(?<!loss)$", name)]
        return found | {name: _following(found[name].value) for name in counts}
    return found


def _numbers(node, at: str) -> Iterator[tuple[str, Number]]:
    """All numbers of a part of the metrics, which stands at a place in them."""
    if isinstance(node, dict):
        measured = _measured(node)
        yield from ((_join(at, key), number) for key, number in measured.items() if number is not None)
        for key, child in node.items():
            setting = key in _SETTINGS and not isinstance(child, (dict, list))
            if key not in (*measured, *_LEFT_OUT) and not setting:
                yield from _numbers(child, _join(at, key))
    elif isinstance(node, list) and node and all(isinstance(entry, dict) for entry in node):
        for index, entry in enumerate(node):
            label = "-".join(str(entry[key]) for key in _LABELS if entry.get(key, "") != "") or str(index)
            yield from _numbers(entry, _join(at, label))
    elif (value := _array(node)) is not None:
        yield at, _by_name(at, value)


def _join(at: str, key: str) -> str:
    return ".".join(part for part in (at, key) if part)


def _array(node) -> np.ndarray | None:
    """Numbers as an array; None where it is something else."""
    if isinstance(node, (bool, str, dict)) or node is None or node == []:
        return None
    try:
        return np.array(node, dtype=float)
    except (ValueError, TypeError):  # texts, or lists of several lengths
        return None


def _by_name(name: str, value: np.ndarray) -> Number:
    kind = next((kind for pattern, kind in _KINDS.items() if re.search(pattern, name)), FOLLOWING)
    if kind == SAMPLED:
        return sample(value[:, 1] if value.ndim == 2 else value)  # a loss stands behind its step
    if name == "nll.original":
        return Number(kind=kind, value=value.mean())
    return Number(kind=kind, value=value)


def _measured(node: dict) -> dict[str, Number | None]:
    """What a mapping says with the values behind it, by key; "" is the mapping itself, None a key that is used up."""
    if {"value", "stderr", "documents"} <= node.keys():  # a measure of a task
        used = dict.fromkeys(("value", "stderr"))
        return used | {"": _measure(node["value"], stderr=node["stderr"], documents=node["documents"])}
    if {"nll", "kl", "documents"} <= node.keys():  # fidelity: sums over a document's tokens, and their number
        documents = np.array(node["documents"], dtype=float)
        return {name: sample(_ratio(documents, column)) for column, name in enumerate(("nll", "kl"))}
    if {"greedy_acceptance", "documents"} <= node.keys():  # of drafts: sums as well
        documents = np.array(node["documents"], dtype=float)
        names = ("greedy_acceptance", "sampling_acceptance")
        return {name: sample(_ratio(documents, column)) for column, name in enumerate(names)}
    if {"mean", "interval", "similarities"} <= node.keys():  # cosines
        return dict.fromkeys(("mean", "interval", "similarities")) | {"": sample(node["similarities"])}
    if {"rows", "fallback_rate", "reasons"} <= node.keys():  # a generated set
        return _set_shares(node)
    if {"angles", "lerp_share"} <= node.keys():  # a merge, tensor by tensor
        angles = [*node["angles"].values()]
        return {"angles": sample(angles), "lerp_share": share(node["lerp_share"], n=len(angles))}
    return _with_interval(node)


def _measure(value: float, *, stderr: float, documents: list) -> Number:
    n, array = len(documents), np.asarray(value, dtype=float)
    values = np.array(documents, dtype=float)
    if np.isin(values, (0, 1)).all():
        return replace(share(value, n=n), documents=values)
    return Number(kind=SAMPLED, value=array, se=stderr, df=n - 1, documents=values) if n > 1 else _following(array)


def _ratio(documents: np.ndarray, column: int) -> np.ndarray:
    """(documents,) values whose mean is a sum over the sum of tokens, in the last column; linearised (delta method)."""
    sums, tokens = documents[:, [column, -1]].T
    ratio = sums.sum() / tokens.sum()
    return ratio + (sums - ratio * tokens) / tokens.mean()


def _following(value) -> Number:
    return Number(kind=FOLLOWING, value=np.asarray(value, dtype=float))


def _set_shares(node: dict) -> dict[str, Number | None]:
    """Rates and reasons as shares of the rows; the mean overlap, which lies in 0..1, of the rows that were kept."""
    rows, kept = node["rows"], round(node["rows"] * (1 - node["fallback_rate"]))
    rates = ("fallback_rate", "copy_rate", "truncation_rate")
    shares = {name: share(node[name], n=rows) for name in rates if name in node}
    shares |= {f"reasons.{name}": share(count / rows, n=rows) for name, count in node["reasons"].items()}
    overlap = share(node["overlap_8gram"], n=kept) if kept else _following(node["overlap_8gram"])
    return shares | {"reasons": None, "overlap_8gram": overlap}


def _with_interval(node: dict) -> dict[str, Number | None]:
    """A number beside its 95 % interval."""
    about, interval = next((name for name in _ESTIMATES if name in node), ""), node.get("interval")
    if not about or not interval or None in (node[about], *interval):
        return {}
    se = (interval[1] - interval[0]) / 2 / _NORMAL
    return {about: Number(kind=SAMPLED, value=np.asarray(node[about], dtype=float), se=se), "interval": None}


def sample(values) -> Number:
    """The mean of values that are drawn independently: documents, rows, steps."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return _following(values.mean())
    return Number(kind=SAMPLED, value=values.mean(), se=values.std(ddof=1) / np.sqrt(n), df=n - 1)


def share(value: float, *, n: int) -> Number:
    """A share of n. Whatever lies in 0..1 spreads no more than zeros and ones of the same mean do."""
    return Number(kind=SAMPLED, value=np.asarray(value), se=np.sqrt(value * (1 - value) / max(n, 1)), df=n - 1, n=n)
