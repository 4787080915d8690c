"""Tables of what a study's jobs did and made: sets, trainings, answers, time and memory; see `tables`."""

import numpy as np
import pandas as pd

from sdd_utils.analysis import comparisons, model_grid
from sdd_utils.analysis.answer_shift import cosines_by_arm
from sdd_utils.base.number_format import percent
from sdd_utils.base.records import device_of, of_step
from sdd_utils.report.figures import NAMES
from sdd_utils.report.tables import FAVOURS

_TRAINED = {"steps": "steps", "response tokens": "trained_tokens"}
_BUDGET = {"rows": "rows", "steps": "steps", "trained tokens": "trained_tokens", "scored tokens": "teacher_tokens"}
_BUDGET |= {"generated tokens": "generated_tokens"}


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
        "kept after each attempt": kept_by_attempt(metrics),
        **{name: percent(metrics[rate]) for rate, name in (names | {"overlap_8gram": "8-gram overlap"}).items()},
        "words, original": f"{np.mean(metrics['words_original']):.1f}",
        "words, written": f"{np.mean(metrics['words_distilled']):.1f}",
    }


def kept_by_attempt(metrics: dict) -> str:
    """The share of all rows that is kept after one attempt, after two, and so on."""
    kept = np.cumsum([attempt["kept"] for attempt in metrics["attempts"]])
    return ", ".join(percent(share) for share in kept / metrics["rows"])


def training_table(records: list[dict]) -> pd.DataFrame:
    """What each arm learnt from at the study's own LoRA capacity: rows, steps and response tokens, means over seeds."""
    lines, models = [], model_grid.finetuned_models(records)
    for arm, n, data_set, rows in sorted(models, key=lambda key: (*key[1:], list(NAMES).index(key[0]))):
        trainings = [metrics["training"] for metrics in models[arm, n, data_set, rows].values()]
        line = {"n": n, "model": NAMES[arm], "fine-tuned on": data_set, "seeds": len(trainings), "rows": rows}
        means = {name: float(np.mean([training[key] for training in trainings])) for name, key in _TRAINED.items()}
        lines.append(line | {name: f"{value:.0f}" for name, value in means.items()})
    return pd.DataFrame(lines)


def budget_table(arms: dict[str, list[dict]], seconds: dict[str, list[float]]) -> pd.DataFrame:
    """What each arm's training took, means over trainings.

    `scored tokens` are positions that the original scored, `generated tokens` those that the pruned model wrote.

    Args:
        arms: by arm, {training, budget} of every training, see `records.TunedModel`.
        seconds: by arm, of the steps of every training.
    """
    lines = []
    for arm in sorted(arms, key=list(NAMES).index):
        counts = [model["training"] | model["budget"] for model in arms[arm]]
        line = {name: f"{np.mean([count[key] for count in counts]):.0f}" for name, key in _BUDGET.items()}
        flops = np.mean([count["flops"] for count in counts]) / 1e12
        line |= {"TFLOP": f"{flops:,.3g}" if flops < 1000 else f"{flops:,.0f}"}
        lines.append({"model": NAMES[arm], **line, "seconds": f"{np.mean(seconds[arm]):.0f}"})
    return pd.DataFrame(lines)


def study_budget_table(records: list[dict]) -> pd.DataFrame:
    """`budget_table` of all fine-tunings of the main comparison; empty where the records do not say."""
    arms: dict[str, list] = {}
    seconds: dict[str, list] = {}
    for record in model_grid.main_finetunings(records):
        for arm, model in record["metrics"]["arms"].items():
            if "budget" in model:
                arms.setdefault(arm, []).append(model)
                seconds.setdefault(arm, []).append(record["provenance"]["training_s"][arm])
    return budget_table(arms, seconds)


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

    Both columns are against the original's greedy answers, so its own sampled ones are the ceiling of the second, and
    both favour Self-Data FT.
    """
    columns = {f"mean cosine, {how}": _mean_cosines(records, how) for how in ("greedy", "sampled")}
    keys = dict.fromkeys(key for cells in reversed(columns.values()) for key in cells)
    names = ("n", "fine-tuned on", "seed", "model", "answers")
    favours = dict.fromkeys(names, "-") | {"model": FAVOURS} | dict.fromkeys(columns, NAMES["self_data_ft"])
    lines = [
        dict(zip(names, key, strict=True)) | {name: cells.get(key, "-") for name, cells in columns.items()}
        for key in keys
    ]
    return pd.DataFrame([favours, *lines] if lines else [])


def answers_table(records: list[dict]) -> pd.DataFrame:
    """The first answers of every model, unselected, each in one line of text; without any the table is empty.

    They are of the first seed, at the block size whose cut is nearest to the paper's.
    """
    n, lines = model_grid.nearest_cut(records), []
    moved = [record for record in of_step(records, "embedding_similarity") if record["params"]["block_size"] == n]
    first = min((record["params"]["seed"] for record in moved), default=None)
    for record in moved:
        if record["params"]["seed"] == first:
            for texts in record["metrics"].get("answers", []):
                named = {NAMES.get(arm, arm): " ".join(text.split()) for arm, text in texts.items()}
                lines.append({"fine-tuned on": record["params"]["data_set"], "n": n} | named)
    return pd.DataFrame(lines)


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
