"""Tables beside the headline: what else the records say about the same models."""

import numpy as np
import pandas as pd

from sdd_utils import grid
from sdd_utils.amounts import percent, points
from sdd_utils.plots import NAMES
from sdd_utils.report import recovered, score_cells
from sdd_utils.results import of_step

_TRAINED = {"steps": "steps", "response tokens": "trained_tokens"}


def score_table(rows: list[dict]) -> pd.DataFrame:
    """The grid as text: guessing, then a line per model; a column per task with its standard error, average, recovery.

    A task has no score of guessing where text is generated, or where a document is not simply right or wrong.
    """
    (original,) = (row["scores"] for row in rows if row["arm"] == "original")
    guessed = {"n": "-", "model": "Chance", "fine-tuned on": "-", "seeds": "-"}
    for task, score in original.items():
        # Earlier records hold a chance for tasks with several right choices, too.
        known = score["chance"] and set(score["documents"]) <= {0, 1}
        guessed[f"{task} ({score['metric']})"] = f"{score['chance']:.3f}" if known else "-"
    lines = [guessed | {"average": "-", "recovery": "-"}]
    for row in rows:
        cells = {"n": row["block_size"], "model": NAMES[row["arm"]], "fine-tuned on": row["data_set"] or "-"}
        cells |= {"seeds": row["seeds"], **score_cells(row["scores"])}
        lines.append(
            cells | {"average": f"{row['average']:.3f}", "recovery": percent(row["recovery"], row["interval"])}
        )
    return pd.DataFrame(lines)


def fidelity_table(records: list[dict]) -> pd.DataFrame:
    """NLL and KL on the original's answers, nats per token, a line per model and a pair of columns per data set.

    Several seeds are averaged, and their number is told.
    """
    found = grid.main_comparison(records)
    for record in of_step(records, "pruning"):
        n = record["params"]["block_size"]
        found[("no_ft" if n else "original", n, "")] = {0: record["metrics"]}
    lines = []
    for (arm, n, data_set), by_seed in sorted(found.items(), key=grid.in_order):
        per_seed = list(by_seed.values())
        line = {"n": n, "model": NAMES[arm], "fine-tuned on": data_set or "-", "seeds": len(per_seed)}
        for name in per_seed[0]["fidelity"]:
            for measure in ("nll", "kl"):
                mean = np.mean([metrics["fidelity"][name][measure] for metrics in per_seed])
                line[f"{measure.upper()} on {name}"] = f"{mean:.3f}"
        lines.append(line)
    return pd.DataFrame(lines)


def domain_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery in and out of the training domain, and forgetting in points; a line per fine-tuned model.

    Args:
        rows: see `domains.with_domains`.
    """
    lines = []
    for row in rows:
        if "forgetting" not in row:
            continue
        own = row["in_domain"]
        line = {"n": row["block_size"], "model": NAMES[row["arm"]], "fine-tuned on": row["data_set"]}
        line |= {"own tasks": ", ".join(own["tasks"]) if own else "-", "recovery there": recovered(own)}
        line |= {"recovery elsewhere": recovered(row["out_of_domain"]), "forgotten, points": "-"}
        if row["forgetting"]:
            line["forgotten, points"] = points(row["forgetting"]["value"], row["forgetting"]["interval"])
        lines.append(line)
    return pd.DataFrame(lines)


def capacity_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery by data set, block size and LoRA capacity, an arm per column (see `grid.capacities`)."""
    by_key: dict[tuple, dict] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data_set", "block_size", "rank", "alpha", "targets"))
        by_key.setdefault(key, {})[NAMES[row["arm"]]] = percent(row["recovery"], row["interval"])
    keys = ("fine-tuned on", "n", "rank", "alpha", "targets")
    return pd.DataFrame(dict(zip(keys, key, strict=True)) | cells for key, cells in by_key.items())


def training_table(records: list[dict]) -> pd.DataFrame:
    """What each arm learnt from at the study's own LoRA capacity: rows, steps and response tokens, means over seeds."""
    lines, found = [], grid.finetuned(records)
    for arm, n, data_set, rows in sorted(found, key=lambda key: (*key[1:], list(NAMES).index(key[0]))):
        trained = [metrics["training"] for metrics in found[arm, n, data_set, rows].values()]
        line = {"n": n, "model": NAMES[arm], "fine-tuned on": data_set, "seeds": len(trained), "rows": rows}
        means = {name: float(np.mean([one[key] for one in trained])) for name, key in _TRAINED.items()}
        lines.append(line | {name: f"{value:.0f}" for name, value in means.items()})
    return pd.DataFrame(lines)
