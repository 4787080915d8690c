"""Tables over a study's records, and the paper's published numbers beside them.

Nothing here computes a score: every cell comes from a record, every published number from `published.py`.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sdd_utils.analysis import comparisons, model_grid
from sdd_utils.analysis.answer_shift import cosines_by_arm
from sdd_utils.analysis.model_grid import differences, nearest_cut, original_scores
from sdd_utils.analysis.published import NUMBERS
from sdd_utils.analysis.statistics import ACCURACY, BITS, CHOICE, recovered
from sdd_utils.analysis.verdicts import OPEN, with_interval
from sdd_utils.base.files import write_text
from sdd_utils.base.number_format import percent, points
from sdd_utils.base.records import device_of, of_step
from sdd_utils.data.arms import arms_in
from sdd_utils.report.figures import NAMES


def score_cells(scores: dict[str, dict], measure: str = ACCURACY) -> dict[str, str]:
    """One measure of each task that has it, with its standard error, as text."""
    cells = {_column(task, score, measure): score[measure] for task, score in scores.items() if measure in score}
    return {column: f"{measured['value']:.3f} ± {measured['stderr']:.3f}" for column, measured in cells.items()}


def _column(task: str, score: dict, measure: str) -> str:
    return f"{task} ({score['metric']})" if measure == ACCURACY else task


def measure_table(by_model: dict[str, dict[str, dict]]) -> pd.DataFrame:
    """Every measure of every task, with its standard error, a column per model ({model: scores})."""
    shown = {ACCURACY: "accuracy", CHOICE: "choice probability", BITS: "bits per byte"}
    columns = {
        model: {
            (task, shown[measure]): "{value:.3f} ± {stderr:.3f}".format_map(score[measure])
            for task, score in scores.items()
            for measure in shown
            if measure in score
        }
        for model, scores in by_model.items()
    }
    return pd.DataFrame(columns)


def pooled_similarities(records: list[dict], how: str) -> dict[str, np.ndarray]:
    """Cosines to the original's greedy answers, per arm, over all fine-tuned models.

    Args:
        how: see `answer_shift.cosines_by_arm`.
    """
    arms: dict[str, list] = {}
    for record in of_step(records, "embedding_similarity"):
        for arm, cosines in cosines_by_arm(record, how).items():
            arms.setdefault(arm, []).extend(cosines["similarities"])
    return {arm: np.array(values) for arm, values in arms.items()}


def embedding_table(records: list[dict]) -> pd.DataFrame:
    """Mean cosine per block size, data set, seed and arm, and over everything in the last lines.

    Both columns are against the original's greedy answers, so its own sampled ones are the ceiling of the second.
    """
    columns = {f"mean cosine, {how}": _mean_cosines(records, how) for how in ("greedy", "sampled")}
    keys = dict.fromkeys(key for cells in reversed(columns.values()) for key in cells)
    names = ("n", "fine-tuned on", "seed", "model", "answers")
    return pd.DataFrame(
        dict(zip(names, key, strict=True)) | {name: cells.get(key, "-") for name, cells in columns.items()}
        for key in keys
    )


def _mean_cosines(records: list[dict], how: str) -> dict[tuple, str]:
    """Mean cosine with its interval by (block size, data set, seed, model, answers); "all" for what is pooled."""
    cells = {}
    for record in of_step(records, "embedding_similarity"):
        where = tuple(record["params"][name] for name in ("block_size", "data_set", "seed"))
        for arm, cosines in cosines_by_arm(record, how).items():
            cells[(*where, NAMES[arm], cosines["n"])] = _mean_cell(cosines["mean"], cosines["interval"])
    for arm, values in pooled_similarities(records, how).items():
        pooled = comparisons.cosine(records, arm=arm, how=how)
        key = ("all", "all", "all", NAMES[arm], len(values))
        cells[key] = _mean_cell(pooled["estimate"], pooled["interval"])
    return cells


def _mean_cell(mean: float, low_high: list[float]) -> str:
    return f"{mean:.3f} [{low_high[0]:.3f}, {low_high[1]:.3f}]"


def distillation_table(records: list[dict]) -> pd.DataFrame:
    """Rates and mean lengths of every set that the unpruned model wrote, a line per set."""
    written = {"distilled": "from the original", "self_generated": "without it"}
    return pd.DataFrame(
        {"data set": record["params"]["data_set"], "written": written[which], **_set_cells(statistics)}
        for record in of_step(records, "distillation")
        for which, statistics in record["metrics"]["sets"].items()
    )


def _set_cells(metrics: dict) -> dict:
    names = {"fallback_rate": "fallback", "copy_rate": "copy", "truncation_rate": "truncation"}
    return {
        "rows": metrics["rows"],
        "kept after each attempt": _kept_by_attempt(metrics),
        **{name: percent(metrics[rate]) for rate, name in (names | {"overlap_8gram": "8-gram overlap"}).items()},
        "words, original": f"{np.mean(metrics['words_original']):.1f}",
        "words, written": f"{np.mean(metrics['words_distilled']):.1f}",
    }


def _kept_by_attempt(metrics: dict) -> str:
    """The share of all rows that is kept after one attempt, after two, and so on."""
    kept = np.cumsum([attempt["kept"] for attempt in metrics["attempts"]])
    return ", ".join(percent(share) for share in kept / metrics["rows"])


def merging_table(records: list[dict]) -> pd.DataFrame:
    """Recovery along the SLERP path of every merge, parents at t = 0 and t = 1, of LERP, and of training on both sets.

    With the share of tensors where SLERP falls back to LERP.
    """
    lines, original = [], original_scores(records)
    for record in of_step(records, "merging"):
        params, metrics = record["params"], record["metrics"]
        line = {"n": params["block_size"], "t = 0": params["data_set"], "t = 1": params["other_data_set"]}
        line |= {f"recovery, t = {point['t']:g}": _recovery_of(point, original) for point in metrics["points"]}
        line |= {f"LERP, t = {point['t']:g}": "-" for point in metrics["points"] if 0 < point["t"] < 1}
        line |= {f"LERP, t = {point['t']:g}": _recovery_of(point, original) for point in metrics["lerp_points"]}
        line["trained on both"] = _recovery_of(metrics["mixture"], original)
        lines.append(line | {"seed": params["seed"], "LERP share": percent(metrics["lerp_share"])})
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


def provenance_table(records: list[dict]) -> pd.DataFrame:
    """Per step: jobs, wall time, peak memory, and where and from which commit they ran."""
    lines = []
    for step in dict.fromkeys(record["step"] for record in records):
        provenances = [record["provenance"] for record in of_step(records, step)]
        lines.append(
            {
                "step": step,
                "jobs": len(provenances),
                "wall time, s (sum)": round(sum(provenance["wall_s"] for provenance in provenances)),
                "peak memory, MB (max)": max(provenance["peak_rss_mb"] for provenance in provenances),
                "threads": ", ".join(sorted({str(provenance["threads"]) for provenance in provenances})),
                "device": ", ".join(sorted({device_of(provenance) for provenance in provenances})),
                "commit": ", ".join(sorted(set(map(_commit, provenances)))),
            }
        )
    return pd.DataFrame(lines)


def _commit(provenance: dict) -> str:
    """The commit in short, with a plus where files were changed since."""
    return provenance["commit"][:8] + ("+" if provenance["dirty"] else "")


def comparison_rows(records: list[dict], rows: list[dict]) -> list[dict]:
    """{key, what, paper, source, ours}: the paper's numbers beside ours; another model, other data, same method.

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


def recovery_table(rows: list[dict], original: dict[str, dict]) -> pd.DataFrame:
    """The headline as text: recovery by block size and data set for each arm, and the difference between arms.

    Beside the difference stand its p-value, corrected over the table's rows (Holm), and the smallest difference that
    the design finds with 80 % power.
    """
    by_model = model_grid.rows_by_model(rows)
    lines = []
    for entry in differences(rows, original):
        n, data_set = entry["block_size"], entry["data_set"]
        cells = {"n": n, "fine-tuned on": data_set}
        for arm in ("no_ft", *arms_in(rows)):
            row = by_model.get((arm, n, "" if arm == "no_ft" else data_set))
            cells[NAMES[arm]] = percent(row["recovery"], row["interval"]) if row else "-"
        cells["Self-Data FT - SFT (points)"] = points(entry["difference"], entry["interval"])
        cells |= {"p (Holm)": f"{entry['p_holm']:.2g}", "detectable (points)": f"{100 * entry['detectable']:.1f}"}
        lines.append(cells)
    return pd.DataFrame(lines)


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a table as Markdown, cell by cell as they are ("0.870" keeps its zero), and as CSV."""
    numeric = [pd.to_numeric(table[column], errors="coerce").notna().all() for column in table]
    align = ["right" if right else "left" for right in numeric]
    markdown = table.to_markdown(index=False, disable_numparse=True, colalign=align)
    write_text(folder / f"{name}.md", markdown + "\n")
    write_text(folder / f"{name}.csv", table.to_csv(index=False))


HEADLINE_CLAIMS = 5
UNTRAINED = ("original", "no_ft")  # no training, so no training seed
_TRAINED = {"steps": "steps", "response tokens": "trained_tokens"}


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


def bits_table(rows: list[dict]) -> pd.DataFrame:
    """Bits per byte of the right answers as text, a line per model and a column per task; lower is better."""
    return pd.DataFrame(_model_cells(row) | score_cells(row["scores"], BITS) for row in rows)


def _model_cells(row: dict) -> dict:
    cells = {"n": row["block_size"], "model": NAMES[row["arm"]], "fine-tuned on": row["data_set"] or "-"}
    return cells | {"seeds": "-" if row["arm"] in UNTRAINED else row["seeds"]}


def _guessed(original: dict[str, dict], measure: str) -> dict:
    """The line of guessing."""
    scored = {task: score for task, score in original.items() if measure in score}
    chances = {_column(task, score, measure): score["chance"] for task, score in scored.items()}
    line = {"n": "-", "model": "Chance", "fine-tuned on": "-", "seeds": "-"}
    return line | {column: f"{chance:.3f}" if chance else "-" for column, chance in chances.items()}


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
    return pd.DataFrame(lines)


def domain_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery in and out of the training domain, and forgetting in points; a line per fine-tuned model.

    Args:
        rows: see `forgetting.with_domains`.
    """
    lines = []
    for row in rows:
        if "forgetting" not in row:
            continue
        inside = row["in_domain"]
        line = {"n": row["block_size"], "model": NAMES[row["arm"]], "fine-tuned on": row["data_set"]}
        line |= {"own tasks": ", ".join(inside["tasks"]) if inside else "-", "recovery there": recovery_cell(inside)}
        line |= {"recovery elsewhere": recovery_cell(row["out_of_domain"]), "forgotten, points": "-"}
        if row["forgetting"]:
            line["forgotten, points"] = points(row["forgetting"]["value"], row["forgetting"]["interval"])
        lines.append(line)
    return pd.DataFrame(lines)


def capacity_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery by data set, block size and LoRA capacity, an arm per column (see `model_grid.capacities`)."""
    by_key: dict[tuple, dict] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data_set", "block_size", "rank", "alpha", "targets"))
        by_key.setdefault(key, {})[NAMES[row["arm"]]] = percent(row["recovery"], row["interval"])
    keys = ("fine-tuned on", "n", "rank", "alpha", "targets")
    return pd.DataFrame(dict(zip(keys, key, strict=True)) | _in_arm_order(cells) for key, cells in by_key.items())


def training_table(records: list[dict]) -> pd.DataFrame:
    """What each arm learnt from at the study's own LoRA capacity: rows, steps and response tokens, means over seeds."""
    lines, models = [], model_grid.finetuned_models(records)
    for arm, n, data_set, rows in sorted(models, key=lambda key: (*key[1:], list(NAMES).index(key[0]))):
        trainings = [metrics["training"] for metrics in models[arm, n, data_set, rows].values()]
        line = {"n": n, "model": NAMES[arm], "fine-tuned on": data_set, "seeds": len(trainings), "rows": rows}
        means = {name: float(np.mean([training[key] for training in trainings])) for name, key in _TRAINED.items()}
        lines.append(line | {name: f"{value:.0f}" for name, value in means.items()})
    return pd.DataFrame(lines)


def claims_table(answers: list[dict]) -> pd.DataFrame:
    """The answers of `verdicts.judge_claims` in a line each: claim, verdict, the number that decides, its p-value."""
    lines = []
    for answer in answers:
        line = {"claim": answer["claim"], "verdict": answer["verdict"], "ours": "-", "p (Holm)": "-", "seeds": "-"}
        if answer["interval"]:
            line |= {"ours": with_interval(answer, answer["unit"]), "p (Holm)": f"{answer['p_holm']:.2g}"}
            line["seeds"] = str(answer["n"]["seeds"])
        lines.append(line)
    return pd.DataFrame(lines)


def headline_claims_table(answers: list[dict]) -> pd.DataFrame:
    """At most five claims for the README: decided ones first, then those that were measured, the clearest first."""
    measured = [answer for answer in answers if answer["estimate"] is not None]
    ranked = sorted(measured, key=lambda answer: (answer["verdict"] == OPEN, answer["p_holm"] or 0))
    return claims_table(ranked[:HEADLINE_CLAIMS])[["claim", "verdict", "ours"]]
