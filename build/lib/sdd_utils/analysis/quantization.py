"""Quality against bytes: which stored models are worth their size, and what a smaller original would give instead."""

import numpy as np

from sdd_utils.analysis.statistics import CHOICE

HIGHER_IS_BETTER = {"kl": False, "choice_probability": True}


def stored_models(metrics: dict) -> list[dict]:
    """A row per model and format, smallest first: {arm, block_size, data_set, format, bytes, kl, choice_probability,
    stderr, decoding, reading}.

    `kl` is the mean over the answer sets, in nats per token; `choice_probability` that over tasks, with its standard
    error, None where no task has choices; `decoding` and `reading` are tokens per second.

    Args:
        metrics: of the record of 08.
    """
    rows = []
    for model in metrics["models"].values():
        row = {name: model[name] for name in ("arm", "block_size", "data_set", "format", "bytes")}
        row["kl"] = float(np.mean([own["kl"] for own in model["fidelity"].values()]))
        measured = [score[CHOICE] for score in model["scores"].values() if CHOICE in score]
        row["choice_probability"] = float(np.mean([own["value"] for own in measured])) if measured else None
        row["stderr"] = float(np.hypot.reduce([own["stderr"] for own in measured]) / max(len(measured), 1))
        seconds = model["seconds"]
        rows.append(row | {"decoding": 1 / seconds["decoding"], "reading": metrics["read_tokens"] / seconds["reading"]})
    return sorted(rows, key=lambda row: row["bytes"])


def front(rows: list[dict], *, measure: str) -> list[dict]:
    """The rows that are better by a measure than all others that are no larger, to a tenth of a megabyte.

    Args:
        rows: of `stored_models`.
        measure: one of `HIGHER_IS_BETTER`.
    """
    sign, kept = (1 if HIGHER_IS_BETTER[measure] else -1), []
    for row in sorted(rows, key=lambda row: (round(row["bytes"] / 1e5), -sign * row[measure])):
        if not kept or sign * row[measure] > sign * kept[-1][measure]:
            kept.append(row)
    return kept


def smaller_original(row: dict, rows: list[dict]) -> dict | None:
    """The best original, by KL, that is no larger than a pruned model; None where there is none."""
    smaller = [other for other in rows if other["arm"] == "original" and other["bytes"] <= row["bytes"]]
    return min(smaller, key=lambda other: other["kl"], default=None)


def choice_in_words(row: dict, rows: list[dict]) -> str:
    """What a user with room for a pruned model could have instead."""
    start = f"{row['format']}, {row['bytes'] / 1e6:.0f} MB, KL {row['kl']:.3f}: "
    other = smaller_original(row, rows)
    if other is None:
        return f"{start}no format of the original is as small."
    size, better = f"{other['bytes'] / 1e6:.0f} MB", "closer" if other["kl"] < row["kl"] else "not closer"
    return f"{start}the original in {other['format']} has {size} and KL {other['kl']:.3f}, so it is {better}."
