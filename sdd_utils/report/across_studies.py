"""One table of several studies, each on a model of another architecture: what a cut lost, and what was healed.

`make readme` writes it from the committed results, into results/models.md and .csv.
"""

import numpy as np
import pandas as pd

from sdd_utils import ROOT
from sdd_utils.analysis import forgetting, model_grid
from sdd_utils.analysis.statistics import BITS
from sdd_utils.base.number_format import percent
from sdd_utils.base.records import of_step, read_record, records_by_file
from sdd_utils.report.figures import NAMES
from sdd_utils.report.job_tables import kept_by_attempt
from sdd_utils.report.tables import healed_cell, write_table
from sdd_utils.study.paths import committed_results

STUDIES = ("embedded", "gemma3-270m", "qwen2.5-coder-0.5b")  # the same core on other models, see studies/
HEALED = "healed_out_of_domain"


def models_table() -> pd.DataFrame:
    """The lines of every study of `STUDIES` that has committed results."""
    lines = []
    for study in STUDIES:
        folder = committed_results(study) / "records"
        if (folder / "results.json").is_file():
            params = read_record(folder / "results.json")["params"]
            lines += study_lines([*records_by_file(folder, names=params["record_names"]).values()], params["in_domain"])
    return pd.DataFrame(lines)


def study_lines(records: list[dict], in_domain: dict[str, list]) -> list[dict]:
    """A line per block size and data set, as text; every measure is of tasks out of the data set's domain."""
    original, rows = model_grid.original_scores(records), model_grid.model_grid(records)
    models = model_grid.rows_by_model(forgetting.with_domains(rows, original, in_domain))
    pruned = {record["params"]["block_size"]: record for record in of_step(records, "pruning")}
    layers = pruned[0]["metrics"]["accounting"]["layers"]
    lines = []
    for arm, n, data_set in models:
        if arm != "sft":
            continue
        tuned = {arm: models[arm, n, data_set] for arm in ("sft", "self_data_ft")}
        cut = pruned[n]["metrics"]["accounting"]["cut_parameters"]
        line = {"model": _short(pruned[n]["params"]["model"]), "layers cut": f"{n} of {layers}"}
        line |= {"parameters cut": percent(cut), "fine-tuned on": data_set, "seeds": str(tuned["sft"]["seeds"])}
        line["bits per byte: original, No FT"] = _loss(tuned["sft"], original, pruned[n]["metrics"]["scores"])
        line |= {f"healed by {NAMES[arm]}": healed_cell(row[HEALED]) for arm, row in tuned.items()}
        lines.append(line | {"rewrites kept after each attempt": _kept(records, data_set)})
    minutes = sum(record["provenance"]["wall_s"] for record in records if record["step"] != "results") / 60
    return [line | {"minutes of all jobs": f"{minutes:.0f}"} for line in lines]


def _short(model: str) -> str:
    """A model's name without owner, revision and file, such as `Qwen2.5-Coder-0.5B-Instruct-GGUF`."""
    return model.partition(":")[0].partition("@")[0].rpartition("/")[2]


def _loss(row: dict, original: dict[str, dict], pruned: dict[str, dict]) -> str:
    """Bits per byte of the original and of the pruned model, means over tasks."""
    if not row[HEALED]:
        return "-"
    before, after = (
        np.mean([scores[task][BITS]["value"] for task in row[HEALED]["tasks"]]) for scores in (original, pruned)
    )
    return f"{before:.3f}, {after:.3f}"


def _kept(records: list[dict], data_set: str) -> str:
    (made,) = (record for record in of_step(records, "distillation") if record["params"]["data_set"] == data_set)
    return kept_by_attempt(made["metrics"]["sets"]["distilled"])


def write_models_table() -> None:
    """Write `models_table` beside the committed results."""
    write_table(models_table(), ROOT / "results", "models")
