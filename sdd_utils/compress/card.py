"""The folder's own papers: a model card with the hub's metadata, a recipe that makes it again, figures."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from huggingface_hub import ModelCardData

from sdd_utils.analysis.statistics import (
    ACCURACY,
    BITS,
    CHOICE,
    bootstrap_mean,
    estimate_ratio,
    healed_parts,
    shows_loss,
)
from sdd_utils.base import precision
from sdd_utils.base.files import write_json
from sdd_utils.base.provenance import cpu_name, versions
from sdd_utils.compress.origin import metadata_of
from sdd_utils.compress.request import BYTES_PER_PARAMETER, Request, shown_size
from sdd_utils.compress.settings import Settings
from sdd_utils.compress.stages import HELD_OUT
from sdd_utils.report import figures, score_figures, tables

RECIPE, CARD, RESULT = "recipe.yaml", "README.md", "result.json"
OF_REQUEST = ("model", "own_data")  # settings that follow from the request alone
TEMPLATE = jinja2.Template(Path(__file__).with_suffix(".md").read_text("utf-8"), undefined=jinja2.StrictUndefined)
SMALLEST_SAMPLE = 8  # held-out rows from which on an interval means something


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a compression found.

    Attributes:
        similarity: see `stages.measure_similarity`.
        parameters: of the original and of the compressed model.
        rewrites: statistics of the distilled sets by name.
        training: see `finetuning.finetune`.
        lost: share of the adapter's update that rounding to bfloat16 lost.
        scores: by model `original`, `no_ft` and the arm.
        similarities: by the same, cosines of answers to the original's.
        answers: by model, rows {question, text, ...} of the same held-out questions.
        weights, data: digests.
    """

    similarity: dict
    parameters: tuple[int, int]
    rewrites: dict[str, dict]
    training: dict
    lost: float
    scores: dict[str, dict[str, dict]]
    similarities: dict[str, np.ndarray]
    answers: dict[str, list[dict]]
    weights: str
    data: str


def shown(name: str) -> str:
    """The name of a model or of data, without the folders that lead to a local one."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name


def asked(request: Request, settings: Settings) -> dict:
    """{request, settings}: what is asked for, as a recipe says it.

    Of a model or data here only the name is said, not where this machine keeps them.
    """
    columns = {key: name for key, name in settings.own_data.get(settings.data_set, {}).items() if key != "source"}
    named = asdict(request) | {"model": shown(request.model), "data": shown(request.data), "columns": columns}
    return {
        "request": named,
        "settings": {name: value for name, value in asdict(settings).items() if name not in OF_REQUEST},
    }


def recipe(request: Request, settings: Settings, result: Result) -> dict:
    """What was asked for, and what it was applied to: enough to make the folder again."""
    block = {name: result.similarity["block"][name] for name in ("start", "block_size")}
    made = {"weights": result.weights, "data": result.data, "block": block, "dtype": precision.dtype_name()}
    made |= {"processor": cpu_name(), "versions": versions()}
    return asked(request, settings) | {"made": made}


def write_recipe(folder: Path, content: dict) -> Path:
    path = folder / RECIPE
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=120))
    return path


def write_result(folder: Path, result: Result, *, seconds: dict[str, float]) -> Path:
    """The numbers of a compression, without any text of the data; seconds by stage, of the last call.

    It is written last, for it names all files of the folder.
    """
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    content = {
        "files": [*files, RESULT],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "parameters": dict(zip(("original", "compressed"), result.parameters, strict=True)),
        "block": result.similarity["block"],
        "rewrites": {which: {name: one[name] for name in ("rows", "fallback_rate", "attempts")}
                     for which, one in result.rewrites.items()},
        "training": {name: result.training[name] for name in ("rows", "steps", "trained_tokens", "seen_tokens")},
        "merge_rounding": result.lost,
        "scores": {name: {task: _measures(score) for task, score in scores.items()}
                   for name, scores in result.scores.items()},
        "similarity_of_answers": {name: bootstrap_mean(values) for name, values in result.similarities.items()},
    }  # fmt: skip
    return write_json(folder / RESULT, content)


def files_of(folder: Path) -> list[str]:
    """The files that a compression wrote into a folder. Raises FileNotFoundError, in one sentence, for another one."""
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder} is no compressed model: make it by 'make compress'")
    try:
        return json.loads((folder / RESULT).read_text())["files"]
    except (ValueError, KeyError, TypeError):
        raise FileNotFoundError(
            f"{folder / RESULT} is damaged: remove {folder}, and 'make compress' makes it"
        ) from None


def _measures(score: dict) -> dict:
    measured = (name for name in (ACCURACY, CHOICE, BITS) if name in score)
    return {"n": score["n"]} | {name: {part: score[name][part] for part in ("value", "stderr")} for name in measured}


def answers_as_text(result: Result) -> str:
    """Held-out questions, and what each model answers, as a table in Markdown."""
    questions = [row["question"] for row in result.answers["original"]]
    said = {figures.NAMES[name]: [row["text"] for row in rows] for name, rows in result.answers.items()}
    table = pd.DataFrame({"question": questions, **said}).replace({r"\|": r"\\|", r"\n": "<br>"}, regex=True)
    return table.to_markdown(index=False, disable_numparse=True) + "\n"


def score_table(result: Result) -> pd.DataFrame:
    """Every measure of the three models with its standard error, and the similarity of their answers."""
    measured = tables.measure_table({figures.NAMES[name]: scores for name, scores in result.scores.items()})
    measured.index = [" ".join(part) for part in measured.index]
    if result.scores["original"][HELD_OUT]["n"] < SMALLEST_SAMPLE:
        own = [name for name in measured.index if name.startswith(HELD_OUT)]
        measured.loc[own] = measured.loc[own].replace(" ±.*", "", regex=True)  # so few rows say nothing of the spread
    row = {figures.NAMES[name]: _with_interval(values) for name, values in result.similarities.items()}
    measured.loc["similarity of answers"] = {figures.NAMES["original"]: "1"} | row
    return measured.rename_axis("measure").reset_index()


def _with_interval(values: np.ndarray) -> str:
    found = bootstrap_mean(values)
    return f"{found['mean']:.3f}" + (f" {_interval(found['interval'])}" if len(values) >= SMALLEST_SAMPLE else "")


def _interval(ends: list[float], form: str = ".3f") -> str:
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]"


def healed_share(result: Result, arm: str) -> dict | None:
    """The share of the bits per byte that pruning cost on held-out rows and healing won back; None where it is unclear.

    Returns:
        see `statistics.estimate_ratio`.
    """
    scores = result.scores
    parts = healed_parts([scores[arm]], scores["original"], scores["no_ft"], tasks=[HELD_OUT])
    few = scores["original"][HELD_OUT]["n"] < SMALLEST_SAMPLE
    return None if few or not shows_loss(parts[1]) else estimate_ratio(*parts)


def summary(result: Result, arm: str) -> str:
    """What the cut cost on the user's own rows, and what healing won back."""
    original, pruned, healed = (result.scores[name][HELD_OUT][BITS]["value"] for name in ("original", "no_ft", arm))
    rows, name = result.scores["original"][HELD_OUT]["n"], figures.NAMES[arm]
    said = f"On {rows} held-out rows of the data the original needs {original:.3f} bits per byte, "
    said += f"the pruned model (No FT) {pruned:.3f}, the healed one ({name}) {healed:.3f}."
    share = healed_share(result, arm)
    if not share:
        return said
    return f"{said} {share['estimate']:.0%} of the loss on such rows is won back {_interval(share['interval'], '.0%')}."


def draw(folder: Path, result: Result) -> list[str]:
    """Write the figures of a folder; returns their names."""
    drawn = {
        "similarity": figures.similarity_heatmap(np.array(result.similarity["map"]), [result.similarity["block"]]),
        "scores": score_figures.score_dots(result.scores),
    }
    names = [figures.save(one, folder / "figures", name).name for name, one in drawn.items()]
    plt.close("all")  # a notebook would show them once more
    return names


def write_card(folder: Path, *, request: Request, settings: Settings, result: Result) -> Path:
    """The model card. The licence is the original's; where that is not known, the card says so."""
    known, (whole, left) = metadata_of(settings.model), result.parameters
    kept = result.rewrites.get("distilled")
    tags = ["pruned", *["self-data-distillation"] * bool(result.rewrites)]
    holds = {
        "metadata": ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known),
        "name": Path(shown(request.model)).name,
        "model": shown(request.model),
        "settings": settings,
        "block": result.similarity["block"],
        "cut": 1 - left / whole,
        "parameters": left,
        "size": shown_size(BYTES_PER_PARAMETER * left),
        "summary": summary(result, settings.arm),
        "licence": known.get("license", ""),
        "rows": settings.data_sets[settings.data_set],
        "kept": 1 - kept["fallback_rate"] if kept else None,
        "arm": figures.NAMES[settings.arm],
        "training": result.training,
        "lost": result.lost,
        "data": shown(request.data),
        "held_out": settings.held_out,
        "answered": len(result.answers["original"]),
        "scores": score_table(result).to_markdown(index=False, disable_numparse=True),
    }
    path = folder / CARD
    path.write_text(TEMPLATE.render(holds) + "\n", "utf-8")
    return path
