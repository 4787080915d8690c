"""When does Self-Data FT pay? Its lead over SFT against the share of rows that are the teacher's own words.

A teacher that rewrites badly leaves most rows as they were, and both arms learn the same. Three settings move that
share on one data set: all attempts, the first one only, and the kept rows alone.
"""

from sdd_utils.analysis import comparisons, model_grid
from sdd_utils.base.records import of_step

SETTINGS = ("self_data_ft", "first_attempt_ft", "kept_rows_ft")  # arms


def acceptance_points(records: list[dict], in_domain: dict[str, list]) -> list[dict]:
    """A point per block size, data set and setting of a study.

    Args:
        in_domain: the tasks of each data set's own domain, by data set.

    Returns:
        {arm, block_size, data_set, own_words, lead, interval}: `own_words` is the share of the written rows, 0..1,
        that are kept rewrites and no copies; `lead` the setting's minus SFT's healed share of bits per byte on tasks
        out of the domain. Cells where it cannot be measured are left out.
    """
    written = {r["params"]["data_set"]: r["metrics"]["sets"]["distilled"] for r in of_step(records, "distillation")}
    points = []
    for arm, n, data_set in model_grid.main_comparison(records):
        if arm not in SETTINGS:
            continue
        try:
            lead = comparisons.retention_lead(_of_cell(records, n, data_set), domains=in_domain, arms=(arm, "sft"))
        except comparisons.Missing:
            continue
        where = {"arm": arm, "block_size": n, "data_set": data_set, "own_words": own_words(written[data_set], arm)}
        points.append(where | {"lead": lead["estimate"], "interval": lead["interval"]})
    return points


def own_words(statistics: dict, arm: str) -> float:
    """The share of an arm's rows, 0..1, that the teacher wrote in words of its own.

    Copies are counted over all attempts, so those of the first one are taken in proportion. Rows that training leaves
    out as too long are counted as well.

    Args:
        statistics: of a distilled set, see `records.SetStatistics`.
    """
    kept = 1 - statistics["fallback_rate"]
    if not kept:
        return 0.0
    own = (kept - statistics["copy_rate"]) / kept
    first = statistics["attempts"][0]["kept"] / statistics["rows"]
    return own * {"self_data_ft": kept, "first_attempt_ft": first, "kept_rows_ft": 1.0}[arm]


def _of_cell(records: list[dict], n: int, data_set: str) -> list[dict]:
    """The records without fine-tunings of other cells."""
    cell = {"block_size": n, "data_set": data_set}
    return [r for r in records if r["step"] != "finetuning" or cell.items() <= r["params"].items()]
