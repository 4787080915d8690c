"""Tables of what a study's models score, and of the claims.

Nothing here computes a score: every cell comes from a record. A measure can favour an arm by construction: bits per
byte of the training domain's own answers favour SFT, which learnt that very style; whatever is measured on the
original's own answers favours Self-Data FT, which learnt that one. The same goes for knowledge distillation on these
responses, and nearness to the original's distributions favours every arm that learns them. Where columns are measures,
a first line `FAVOURS` says so; where lines are, a column. A table without either holds only measures that favour none.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from sdd_utils.analysis import model_grid
from sdd_utils.analysis.model_grid import differences, original_scores
from sdd_utils.analysis.statistics import ACCURACY, BITS, CHOICE, recovered
from sdd_utils.analysis.verdicts import OPEN, with_interval
from sdd_utils.base.files import write_text
from sdd_utils.base.number_format import percent, points
from sdd_utils.base.records import of_step
from sdd_utils.data.arms import LOSSES, arms_in
from sdd_utils.report.figures import NAMES
from sdd_utils.report.score_figures import name_of

FAVOURS = "Favours"  # the line that names the arm which a column's measure favours by construction
ON_ORIGINALS = ("sft", "logit_kd")  # they learn the style of the original responses
NEAR_ORIGINAL = ("self_data_ft", *LOSSES)  # they learn the original's words, or its distributions


def _favoured(arms: Iterable[str], favoured: tuple[str, ...]) -> str:
    """The names of those arms of a table that a measure favours, the first one in any case."""
    present = set(arms) | {favoured[0]}
    return ", ".join(NAMES[arm] for arm in favoured if arm in present)


def score_cells(scores: dict[str, dict], measure: str = ACCURACY) -> dict[str, str]:
    """One measure of each task that has it, with its standard error, as text."""
    cells = {_column(task, score, measure): score[measure] for task, score in scores.items() if measure in score}
    return {column: f"{measured['value']:.3f} ± {measured['stderr']:.3f}" for column, measured in cells.items()}


def _column(task: str, score: dict, measure: str) -> str:
    return f"{task} ({score['metric']})" if measure == ACCURACY else task


def measure_table(by_model: dict[str, dict[str, dict]]) -> pd.DataFrame:
    """Every measure of every task, with its standard error, a column per model ({model: scores})."""
    columns = {
        model: {
            (task, name_of(measure)): "{value:.3f} ± {stderr:.3f}".format_map(score[measure])
            for task, score in scores.items()
            for measure in (ACCURACY, CHOICE, BITS)
            if measure in score
        }
        for model, scores in by_model.items()
    }
    return pd.DataFrame(columns)


def merging_table(records: list[dict]) -> pd.DataFrame:
    """Recovery along the SLERP path of every merge, parents at t = 0 and t = 1, of LERP, and of training on both sets.

    With the share of tensors where SLERP falls back to LERP, and SLERP of task vectors where a record has it.
    """
    lines, original = [], original_scores(records)
    for record in of_step(records, "merging"):
        params, metrics = record["params"], record["metrics"]
        line = {"n": params["block_size"], "t = 0": params["data_set"], "t = 1": params["other_data_set"]}
        line |= {f"recovery, t = {point['t']:g}": _recovery_of(point, original) for point in metrics["points"]}
        line |= {f"LERP, t = {point['t']:g}": "-" for point in metrics["points"] if 0 < point["t"] < 1}
        line |= {f"LERP, t = {point['t']:g}": _recovery_of(point, original) for point in metrics["lerp_points"]}
        vectors = metrics.get("task_vectors", {"points": []})
        inside = [point for point in vectors["points"] if 0 < point["t"] < 1]
        line |= {f"task vectors, t = {point['t']:g}": _recovery_of(point, original) for point in inside}
        line["trained on both"] = _recovery_of(metrics["mixture"], original)
        line |= {"seed": params["seed"], "LERP share": percent(metrics["lerp_share"])}
        lines.append(line | ({"LERP share of task vectors": percent(vectors["lerp_share"])} if inside else {}))
    return pd.DataFrame(lines)


def _recovery_of(point: dict | None, original: dict[str, dict]) -> str:
    return recovery_cell(point and recovered(point["scores"], original))


def recovery_cell(part: dict | None) -> str:
    """Recovery with its interval as text, "-" where there is none."""
    return percent(part["recovery"], part["interval"]) if part else "-"


def scaling_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery by data set, block size and number of training rows, an arm per column (see `model_grid.scaling`)."""
    by_key: dict[tuple, dict] = {}
    for row in rows:
        cells = by_key.setdefault((row["data_set"], row["block_size"], row["rows"]), {})
        cells[NAMES[row["arm"]]] = percent(row["recovery"], row["interval"])
    keys = ("fine-tuned on", "n", "rows")
    return pd.DataFrame(
        dict(zip(keys, key, strict=True)) | _in_arm_order(cells) for key, cells in sorted(by_key.items())
    )


def _in_arm_order(cells: dict[str, str]) -> dict[str, str]:
    """Cells by an arm's name, in the order that all tables have."""
    return {name: cells[name] for name in NAMES.values() if name in cells}


def recovery_table(rows: list[dict], original: dict[str, dict], *, measure: str = ACCURACY) -> pd.DataFrame:
    """Recovery as text, by block size and data set for each arm, and the difference between arms.

    Beside the difference stand its p-value, corrected over the table's rows (Holm), and the smallest difference that
    the design finds with 80 % power.

    Args:
        measure: of accuracy, as the paper defines it, or of choice probability.
    """
    parts = {key: row if measure == ACCURACY else row["choice_recovery"]
             for key, row in model_grid.rows_by_model(rows).items()}  # fmt: skip
    lines = []
    for entry in differences(rows, original, measure=measure):
        n, data_set = entry["block_size"], entry["data_set"]
        cells = {"n": n, "fine-tuned on": data_set}
        for arm in ("no_ft", *arms_in(rows)):
            cells[NAMES[arm]] = recovery_cell(parts.get((arm, n, "" if arm == "no_ft" else data_set)))
        cells["Self-Data FT - SFT (points)"] = points(entry["difference"], entry["interval"])
        cells |= {"p (Holm)": f"{entry['p_holm']:.2g}", "detectable (points)": f"{100 * entry['detectable']:.1f}"}
        lines.append(cells)
    return pd.DataFrame(lines)


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a table as Markdown, cell by cell as they are ("0.870" keeps its zero), and as CSV."""
    numeric = [pd.to_numeric(table[column], errors="coerce").notna().all() for column in table]
    align = ["right" if right else "left" for right in numeric]
    escaped = table.map(lambda cell: cell.replace("|", r"\|") if isinstance(cell, str) else cell)
    markdown = escaped.to_markdown(index=False, disable_numparse=True, colalign=align)
    write_text(folder / f"{name}.md", markdown + "\n")
    write_text(folder / f"{name}.csv", table.to_csv(index=False))


HEADLINE_CLAIMS = 5
UNTRAINED = ("original", "no_ft")  # no training, so no training seed


def score_table(rows: list[dict]) -> pd.DataFrame:
    """Accuracy as text: guessing, then a line per model; a column per task with its standard error, average, recovery.

    A task has no score of guessing where text is generated, or where several choices are right.
    """
    (original,) = (row["scores"] for row in rows if row["arm"] == "original")
    guessed = _guessed(original, ACCURACY) | {"average": "-", "recovery": "-"}
    lines = [
        _model_cells(row)
        | score_cells(row["scores"])
        | {"average": f"{row['average']:.3f}", "recovery": percent(row["recovery"], row["interval"])}
        for row in rows
    ]
    return pd.DataFrame([guessed, *lines])


def choice_table(rows: list[dict]) -> pd.DataFrame:
    """The probability of the right choice as text, as `score_table` does it for accuracy; empty without such tasks."""
    (original,) = (row["scores"] for row in rows if row["arm"] == "original")
    lines = [
        _model_cells(row) | score_cells(row["scores"], CHOICE) | {"recovery": recovery_cell(row["choice_recovery"])}
        for row in rows
        if row["choice_recovery"]
    ]
    return pd.DataFrame([_guessed(original, CHOICE) | {"recovery": "-"}, *lines] if lines else [])


def bits_table(rows: list[dict], in_domain: dict[str, list]) -> pd.DataFrame:
    """Bits per byte of the right answers as text, a line per model and a column per task; lower is better.

    Args:
        in_domain: the tasks of each data set's domain, which favour SFT on that set.
    """
    (original,) = (row["scores"] for row in rows if row["arm"] == "original")
    lines = [_model_cells(row) | score_cells(row["scores"], BITS) for row in rows]
    tasks = {task: [name for name, own in in_domain.items() if task in own] for task in score_cells(original, BITS)}
    favoured = _favoured((row["arm"] for row in rows), ON_ORIGINALS)
    favours = {task: f"{favoured} on {', '.join(names)}" if names else "-" for task, names in tasks.items()}
    return pd.DataFrame([_no_model(FAVOURS) | favours, *lines] if tasks else [])


def _model_cells(row: dict) -> dict:
    cells = {"n": row["block_size"], "model": NAMES[row["arm"]], "fine-tuned on": row["data_set"] or "-"}
    return cells | {"seeds": "-" if row["arm"] in UNTRAINED else row["seeds"]}


def _guessed(original: dict[str, dict], measure: str) -> dict:
    """The line of guessing."""
    scored = {task: score for task, score in original.items() if measure in score}
    chances = {_column(task, score, measure): score["chance"] for task, score in scored.items()}
    return _no_model("Chance") | {column: f"{chance:.3f}" if chance else "-" for column, chance in chances.items()}


def _no_model(name: str) -> dict:
    """The first cells of a line that is about the columns."""
    return {"n": "-", "model": name, "fine-tuned on": "-", "seeds": "-"}


def fidelity_table(records: list[dict]) -> pd.DataFrame:
    """NLL and KL on the original's answers, nats per token, a line per model and a pair of columns per data set.

    Several seeds are averaged, and their number is reported.
    """
    models = model_grid.main_comparison(records)
    for record in of_step(records, "pruning"):
        n = record["params"]["block_size"]
        models[("no_ft" if n else "original", n, "")] = {0: record["metrics"]}
    lines = []
    for (arm, n, data_set), by_seed in sorted(models.items(), key=model_grid.in_order):
        per_seed = list(by_seed.values())
        line = {"n": n, "model": NAMES[arm], "fine-tuned on": data_set or "-"}
        line["seeds"] = "-" if arm in UNTRAINED else len(per_seed)
        for name in per_seed[0]["fidelity"]:
            for measure in ("nll", "kl"):
                mean = np.mean([metrics["fidelity"][name][measure] for metrics in per_seed])
                line[f"{measure.upper()} on {name}"] = f"{mean:.3f}"
        lines.append(line)
    favoured = _favoured((arm for arm, _, _ in models), NEAR_ORIGINAL)
    favours = _no_model(FAVOURS) | {column: favoured for column in lines[0] if " on " in column}
    return pd.DataFrame([_no_model(FAVOURS) | favours, *lines])


def domain_table(rows: list[dict]) -> pd.DataFrame:
    """Healed share and recovery on tasks of the training domain and on others, and forgetting; a line per tuned model.

    Args:
        rows: see `forgetting.with_domains`.
    """
    tuned = [row for row in rows if "forgetting" in row]
    lines = [
        {"n": row["block_size"], "model": NAMES[row["arm"]], "fine-tuned on": row["data_set"]}
        | {name: cell(row) for name, cell in _DOMAIN_CELLS.items()}
        for row in tuned
    ]
    favoured = _favoured((row["arm"] for row in tuned), ON_ORIGINALS)
    favours = dict.fromkeys(_DOMAIN_CELLS, "-") | {"healed, own tasks": favoured}
    first = {"n": "-", "model": FAVOURS, "fine-tuned on": "-"}
    return pd.DataFrame([first | favours, *lines] if lines else [])


def healed_cell(part: dict | None) -> str:
    """A healed share with its interval as text, "-" where there is none."""
    return percent(part["share"], part["interval"]) if part else "-"


def _points_cell(part: dict | None) -> str:
    return points(part["value"], part["interval"]) if part else "-"


_DOMAIN_CELLS = {
    "healed, other tasks": lambda row: healed_cell(row["healed_out_of_domain"]),
    "healed, own tasks": lambda row: healed_cell(row["healed_in_domain"]),
    "recovery, other tasks": lambda row: recovery_cell(row["out_of_domain"]),
    "recovery, own tasks": lambda row: recovery_cell(row["in_domain"]),
    "forgotten, points": lambda row: _points_cell(row["forgetting"]),
}


def capacity_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery by data set, block size and LoRA capacity, an arm per column (see `model_grid.capacities`)."""
    by_key: dict[tuple, dict] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data_set", "block_size", "rank", "alpha", "targets"))
        by_key.setdefault(key, {})[NAMES[row["arm"]]] = percent(row["recovery"], row["interval"])
    keys = ("fine-tuned on", "n", "rank", "alpha", "targets")
    return pd.DataFrame(dict(zip(keys, key, strict=True)) | _in_arm_order(cells) for key, cells in by_key.items())


def claims_table(answers: list[dict]) -> pd.DataFrame:
    """The answers of `verdicts.judge_claims` in a line each: claim, verdict, the number that decides, its p-value."""
    lines = []
    for answer in answers:
        line = {"claim": answer["claim"], "verdict": answer["verdict"], "ours": "-"}
        line |= {"favours": answer["favours"] or "-", "p (Holm)": "-", "seeds": "-"}
        if answer["interval"]:
            line |= {"ours": with_interval(answer, answer["unit"]), "p (Holm)": f"{answer['p_holm']:.2g}"}
            line["seeds"] = str(answer["n"]["seeds"])
        lines.append(line)
    return pd.DataFrame(lines)


def headline_claims_table(answers: list[dict]) -> pd.DataFrame:
    """At most five claims for the README: the primary ones, then decided ones, then the clearest of those measured."""
    shown = [answer for answer in answers if answer["primary"] or answer["estimate"] is not None]
    ranked = sorted(shown, key=_headline_rank)
    return claims_table(ranked[:HEADLINE_CLAIMS])[["claim", "verdict", "ours", "favours"]]


def _headline_rank(answer: dict) -> tuple:
    return (0,) if answer["primary"] else (1, answer["verdict"] == OPEN, answer["p_holm"] or 0)
