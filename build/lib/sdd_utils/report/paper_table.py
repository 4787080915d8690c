"""The paper's published numbers beside ours; every published one comes from `analysis.published`."""

import pandas as pd

from sdd_utils.analysis import comparisons
from sdd_utils.analysis.model_grid import nearest_cut
from sdd_utils.analysis.published import NUMBERS
from sdd_utils.base.number_format import percent, points
from sdd_utils.base.records import of_step


def comparison_rows(records: list[dict], rows: list[dict]) -> list[dict]:
    """{key, what, paper, source, ours, favours}: the paper's numbers beside ours; other model and data, same method.

    Those at n = 6 stand beside the fine-tuned block size that cuts the share of parameters nearest to the paper's,
    and embedding similarity on OpenMathInstruct beside that on such a set, where the study has one.
    """
    our_numbers = _our_numbers(records, rows)
    return [
        {
            "key": published.key,
            "what": published.what,
            "paper": f"{published.value:g} {published.unit}",
            "source": published.source,
            "ours": our_numbers.get(published.key, "-"),
            "favours": "Self-Data FT" if published.key.startswith("embedding") else "-",
        }
        for published in NUMBERS
    ]


def _our_numbers(records: list[dict], rows: list[dict]) -> dict[str, str]:
    """Our number beside each published one, as text, by the published one's key."""
    n = nearest_cut(records)
    numbers = {f"recovery_{arm}": _range_of(rows, arm=arm, n=n) for arm in ("sft", "self_data_ft")}
    for arm in ("sft", "self_data_ft"):
        mean = comparisons.cosine(nearest_similarities(records), arm=arm)
        low, high = mean["interval"]
        numbers[f"embedding_{arm}"] = f"{mean['estimate']:.2f} [{low:.2f}, {high:.2f}] ({mean['where']})"
    gain = comparisons.largest_gain(records)
    numbers["gain"] = f"{points(gain['estimate'], gain['interval'])} ({gain['where']})"
    pruned = {r["params"]["block_size"]: r["metrics"]["accounting"] for r in of_step(records, "pruning")}[n]
    numbers["layers_n6"] = f"{pruned['layers']} layers (n = {n})"
    numbers["parameters_n6"] = f"{pruned['parameters'] / 1e9:.3f} billion (n = {n})"
    numbers["cut_n6"] = f"{percent(pruned['cut_parameters'])} (n = {n}; matmul count {percent(pruned['cut_matmul'])})"
    return numbers


def comparison_table(records: list[dict], rows: list[dict]) -> pd.DataFrame:
    """`comparison_rows` without their keys."""
    return pd.DataFrame(comparison_rows(records, rows)).drop(columns="key")


def nearest_similarities(records: list[dict]) -> list[dict]:
    """The records of 06 on a set like the paper's OpenMathInstruct, where the study has one, else all of them."""
    similarities = of_step(records, "embedding_similarity")
    return [record for record in similarities if "openmath" in record["params"]["data_set"]] or similarities


def _range_of(rows: list[dict], *, arm: str, n: int) -> str:
    """Recovery of one arm at one block size, each data set with its interval."""
    of_arm = [row for row in rows if row["arm"] == arm and row["block_size"] == n]
    return "; ".join(f"{row['data_set']} {percent(row['recovery'], row['interval'])}" for row in of_arm) + f" (n = {n})"
