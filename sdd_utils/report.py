"""Tables over a study's records, and the paper's published numbers beside them.

Nothing here computes a score: every cell comes from a record, every published number from `paper.py`.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from sdd_utils import contrasts, inference, paper
from sdd_utils.amounts import percent, points
from sdd_utils.arms import arms_in
from sdd_utils.grid import differences, nearest_cut, original_scores
from sdd_utils.plots import NAMES
from sdd_utils.results import averaged_tasks, device_of, of_step, write_whole


def score_cells(scores: dict[str, dict]) -> dict[str, str]:
    """Each task's score and standard error, as text."""
    return {f"{t} ({s['metric']})": f"{s['value']:.3f} ± {s['stderr']:.3f}" for t, s in scores.items()}


def pooled_similarities(records: list[dict]) -> dict[str, np.ndarray]:
    """Cosines to the original's answers, per arm, over all fine-tuned models."""
    arms: dict[str, list] = {}
    for record in of_step(records, "embedding_similarity"):
        for arm, metrics in record["metrics"]["arms"].items():
            arms.setdefault(arm, []).extend(metrics["similarities"])
    return {arm: np.array(values) for arm, values in arms.items()}


def sampled(records: list[dict]) -> list[dict]:
    """The embedding records with sampled answers in the place of greedy ones, the original's as an arm of its own.

    Records made before answers were sampled have none and are left out.
    """
    found = []
    for record in of_step(records, "embedding_similarity"):
        metrics = record["metrics"]
        if "original_sampled" in metrics:
            arms = {arm: own["sampled"] for arm, own in metrics["arms"].items()}
            found.append(record | {"metrics": {"arms": {"original": metrics["original_sampled"], **arms}}})
    return found


def embedding_table(records: list[dict]) -> pd.DataFrame:
    """Mean cosine per block size, data set, seed and arm, and over everything in the last lines.

    Both columns are against the original's greedy answers, so its own sampled ones are the ceiling of the second.
    """
    columns = {"mean cosine, greedy": _mean_cosines(records), "mean cosine, sampled": _mean_cosines(sampled(records))}
    keys = dict.fromkeys(key for cells in reversed(columns.values()) for key in cells)
    names = ("n", "fine-tuned on", "seed", "model", "answers")
    return pd.DataFrame(
        dict(zip(names, key, strict=True)) | {name: cells.get(key, "-") for name, cells in columns.items()}
        for key in keys
    )


def _mean_cosines(records: list[dict]) -> dict[tuple, str]:
    """Mean cosine with its interval by (block size, data set, seed, model, answers); "all" for what is pooled."""
    found = {}
    for record in of_step(records, "embedding_similarity"):
        where = tuple(record["params"][name] for name in ("block_size", "data_set", "seed"))
        for arm, own in record["metrics"]["arms"].items():
            found[(*where, NAMES[arm], own["n"])] = _mean_cell(own["mean"], own["interval"])
    for arm, values in pooled_similarities(records).items():
        pooled = contrasts.cosine(records, arm=arm)
        key = ("all", "all", "all", NAMES[arm], len(values))
        found[key] = _mean_cell(pooled["estimate"], pooled["interval"])
    return found


def _mean_cell(mean: float, low_high: list[float]) -> str:
    return f"{mean:.3f} [{low_high[0]:.3f}, {low_high[1]:.3f}]"


def distillation_table(records: list[dict]) -> pd.DataFrame:
    """Rates and mean lengths of every set that the unpruned model wrote, a line per set."""
    lines = []
    for record in of_step(records, "distillation"):
        where, metrics = {"data set": record["params"]["data_set"]}, record["metrics"]
        lines.append({**where, "written": "from the original", **_set_cells(metrics)})
        if "self_generated" in metrics:
            lines.append({**where, "written": "without it", **_set_cells(metrics["self_generated"])})
    return pd.DataFrame(lines)


def _set_cells(metrics: dict) -> dict:
    names = {"fallback_rate": "fallback", "copy_rate": "copy", "truncation_rate": "truncation"}
    return {
        "rows": metrics["rows"],
        **{name: percent(metrics[rate]) for rate, name in (names | {"overlap_8gram": "8-gram overlap"}).items()},
        "words, original": f"{np.mean(metrics['words_original']):.1f}",
        "words, written": f"{np.mean(metrics['words_distilled']):.1f}",
    }


def merging_table(records: list[dict]) -> pd.DataFrame:
    """Recovery along the SLERP path of every merge, parents at t = 0 and t = 1, of LERP, and of training on both sets.

    With the share of tensors where SLERP falls back to LERP. "-" where a record does not have it.
    """
    lines, original = [], original_scores(records)
    for record in of_step(records, "merging"):
        params, metrics = record["params"], record["metrics"]
        line = {"n": params["block_size"], "t = 0": params["data_set"], "t = 1": params["other_data_set"]}
        line |= {f"recovery, t = {p['t']:g}": _recovery_of(p, original) for p in metrics["points"]}
        line |= {f"LERP, t = {p['t']:g}": "-" for p in metrics["points"] if 0 < p["t"] < 1}
        line |= {f"LERP, t = {p['t']:g}": _recovery_of(p, original) for p in metrics.get("lerp_points", [])}
        line["trained on both"] = _recovery_of(metrics.get("mixture"), original)
        lines.append(line | {"seed": params["seed"], "LERP share": percent(metrics["lerp_share"])})
    return pd.DataFrame(lines)


def _recovery_of(point: dict | None, original: dict[str, dict]) -> str:
    return recovered(point and inference.recovered(point["scores"], original))


def recovered(part: dict | None) -> str:
    """Recovery with its interval as text, "-" where there is none."""
    return percent(part["recovery"], part["interval"]) if part else "-"


def scaling_table(rows: list[dict]) -> pd.DataFrame:
    """Recovery by data set, block size and number of training rows, an arm per column (see `grid.scaling`)."""
    by_key: dict[tuple, dict] = {}
    for row in rows:
        cells = by_key.setdefault((row["data_set"], row["block_size"], row["rows"]), {})
        cells[NAMES[row["arm"]]] = percent(row["recovery"], row["interval"])
    keys = ("fine-tuned on", "n", "rows")
    return pd.DataFrame(dict(zip(keys, key, strict=True)) | cells for key, cells in sorted(by_key.items()))


def provenance_table(records: list[dict]) -> pd.DataFrame:
    """Per step: jobs, wall time, peak memory, and where and from which commit they ran."""
    lines = []
    for step in dict.fromkeys(record["step"] for record in records):
        made = [record["provenance"] for record in of_step(records, step)]
        lines.append(
            {
                "step": step,
                "jobs": len(made),
                "wall time, s (sum)": round(sum(p["wall_s"] for p in made)),
                "peak memory, MB (max)": max(p["peak_rss_mb"] for p in made),
                "threads": ", ".join(sorted({str(p["threads"]) for p in made})),
                "device": ", ".join(sorted({device_of(p) for p in made})),
                "commit": ", ".join(sorted({p["commit"][:8] + ("+" if p["dirty"] else "") for p in made})),
            }
        )
    return pd.DataFrame(lines)


def comparison(records: list[dict], rows: list[dict]) -> pd.DataFrame:
    """The paper's numbers beside ours: another model, other data, same method.

    Those at n = 6 stand beside the fine-tuned block size that cuts the share of parameters nearest to the paper's,
    and embedding similarity on OpenMathInstruct beside that on such a set, where the study has one.
    """
    tuned = [row for row in rows if row["arm"] in ("sft", "self_data_ft")]
    n = nearest_cut(records)
    ours = {f"recovery_{arm}": _range_of(tuned, arm=arm, n=n) for arm in ("sft", "self_data_ft")}
    like = [r for r in of_step(records, "embedding_similarity") if "openmath" in r["params"]["data_set"]] or records
    for arm in ("sft", "self_data_ft"):
        mean = contrasts.cosine(like, arm=arm)
        low, high = mean["interval"]
        ours[f"embedding_{arm}"] = f"{mean['estimate']:.2f} [{low:.2f}, {high:.2f}] ({mean['where']})"
    gain = contrasts.largest_gain(records)
    ours["gain"] = f"{points(gain['estimate'], gain['interval'])} ({gain['where']})"
    pruned = next(r for r in of_step(records, "pruning") if r["params"]["block_size"] == n)["metrics"]["accounting"]
    ours["layers_n6"] = f"{pruned['layers']} layers (n = {n})"
    ours["parameters_n6"] = f"{pruned['parameters'] / 1e9:.3f} billion (n = {n})"
    ours["cut_n6"] = f"{percent(pruned['cut_parameters'])} (n = {n}; matmul count {percent(pruned['cut_matmul'])})"
    return pd.DataFrame(
        {
            "what": published.what,
            "paper": f"{published.value:g} {published.unit}",
            "source": published.source,
            "ours": ours.get(published.key, "-"),
        }
        for published in paper.NUMBERS
    )


def _range_of(tuned: list[dict], *, arm: str, n: int) -> str:
    """Recovery of one arm at one block size, each data set with its interval."""
    own = [row for row in tuned if row["arm"] == arm and row["block_size"] == n]
    return "; ".join(f"{row['data_set']} {percent(row['recovery'], row['interval'])}" for row in own) + f" (n = {n})"


def recovery_table(rows: list[dict], original: dict[str, dict]) -> pd.DataFrame:
    """The headline as text: recovery by block size and data set for each arm, and the difference between arms.

    Beside the difference stand its p-value, corrected over the table's rows (Holm), and the smallest difference that
    the design finds with 80 % power.
    """
    by_key = {(row["arm"], row["block_size"], row["data_set"]): row for row in rows}
    lines = []
    for entry in differences(rows, original):
        n, data_set = entry["block_size"], entry["data_set"]
        cells = {"n": n, "fine-tuned on": data_set}
        for arm in ("no_ft", *arms_in(rows)):
            row = by_key.get((arm, n, "" if arm == "no_ft" else data_set))
            cells[NAMES[arm]] = percent(row["recovery"], row["interval"]) if row else "-"
        cells["Self-Data FT - SFT (points)"] = points(entry["difference"], entry["interval"])
        cells |= {"p (Holm)": f"{entry['p_holm']:.2g}", "detectable (points)": f"{100 * entry['detectable']:.1f}"}
        lines.append(cells)
    return pd.DataFrame(lines)


def averaged(records: list[dict]) -> str:
    """The tasks that the average is over, as text."""
    return ", ".join(averaged_tasks(original_scores(records)))


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a table as Markdown and as CSV."""
    write_whole(folder / f"{name}.md", table.to_markdown(index=False) + "\n")
    write_whole(folder / f"{name}.csv", table.to_csv(index=False))


def collect_figures(source: Path, folder: Path) -> None:
    """Put the figures that a run's notebooks drew where the study's results are kept, in place of an earlier run's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.p*")):
        shutil.copy(path, folder)
