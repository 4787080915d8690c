"""What a compression does, stage by stage: each is a function whose result a rerun finds again.

The steps are those of the studies (`sdd_utils.steps`), on one block size, one data set and one arm.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sdd_utils.analysis.statistics import BITS
from sdd_utils.base import precision
from sdd_utils.base.files import digest, file_sha256, keep_rows
from sdd_utils.base.import_graph import code_digest
from sdd_utils.compress.settings import Settings
from sdd_utils.data.arms import loss_of, scored_arms
from sdd_utils.data.rows import SPLITS, calibration_set, fingerprint, load_rows, question_of, text_of
from sdd_utils.engine.generation import ADAPTER_WEIGHTS
from sdd_utils.models import architecture, store
from sdd_utils.steps import (
    answer_similarity,
    distillation,
    evaluation,
    fidelity,
    finetuning,
    pruning,
    similarity,
    teacher,
    training_rows,
)
from sdd_utils.study.paths import Run

HELD_OUT = "held_out"  # the task that the user's own held-out rows are
# Arms that learn what the unpruned model writes, by the set that they need; the others learn the data as it is.
WRITTEN_FOR = dict.fromkeys(
    ("self_data_ft", "first_attempt_ft", "kept_rows_ft", "mixed_ft", "self_data_kd"), "distilled"
) | {"self_generated_ft": "self_generated"}


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """The training rows, what the arm learns beside them by set, and how the unpruned model's writing of it went."""

    rows: list[dict]
    sets: dict[str, dict[str, dict]]
    statistics: dict[str, dict]


def made_of(model: str | Path) -> str:
    """Digest of a model as it computes here: weights, configuration, tokenizer, chat template and precision."""
    folder = store.find_model(str(model))
    names = [path for ending in ("json", "jinja", "model", "txt") for path in sorted(folder.glob(f"*.{ending}"))]
    beside = {path.name: file_sha256(path) for path in names if path.name != "manifest.json"}
    return digest(store.identity(folder), beside, precision.dtype_name())


def measure_similarity(settings: Settings, files: Run) -> dict:
    """The angular map of the model on the calibration rows, and the block that it names.

    Returns:
        {map, block_influence, block: {block_size, start, distance, stability}}
    """
    names = {"rows": settings.calibration_rows, "own_data": settings.own_data}
    texts = [text_of(row) for row in calibration_set(settings.calibration_sets, **names)]
    reading = {"batch_size": settings.calibration_batch, "max_length": settings.max_length}
    key = digest(made_of(settings.model), texts, reading, settings.block_sizes, code_digest([similarity.__name__]))

    def make(_) -> Iterator[dict]:
        model, tokenizer = store.load_model(settings.model)
        measured = similarity.measure_similarity(model, tokenizer, texts, **reading)
        (block,) = similarity.choose_blocks(measured, settings.block_sizes)
        influence = measured.block_influence.round(similarity.DIGITS).tolist()
        yield {"id": "similarity", "map": measured.map.tolist(), "block_influence": influence, "block": block}

    (kept,) = keep_rows(files.generated("similarity"), {"similarity": key}, make=make)
    return {name: kept[name] for name in ("map", "block_influence", "block")}


def prune(settings: Settings, files: Run, *, start: int) -> Path:
    """The checkpoint without the block that starts here."""
    depth = store.load_config(settings.model).get_text_config().num_hidden_layers
    block = {"start": start, "block_size": settings.block_size}
    weights, kept = store.weights_digest(settings.model), architecture.kept_layers(**block, depth=depth)
    recipe = {"prune": "block", "original": weights, **block, "kept_layers": kept, "made_of": made_of(settings.model)}
    folder = files.checkpoint(settings.block_size)
    if _made_by(folder) != recipe:
        model, tokenizer = store.load_model(settings.model)
        model = pruning.remove_block(model, **block)
        store.save_model(model, tokenizer, folder=folder, parent=settings.model, recipe=recipe)
    return folder


def _made_by(folder: Path) -> dict:
    """The recipe of a checkpoint whose weights are those that were written, else nothing."""
    try:
        manifest = store.read_manifest(folder)
        whole = all(file_sha256(folder / name) == value for name, value in manifest.get("sha256", {}).items())
    except (ValueError, OSError):
        return {}
    return manifest.get("recipe", {}) if whole else {}


def rewrite(settings: Settings, files: Run) -> Rewritten:
    """What the arm learns: the unpruned model writes its own version of every response, if the arm learns that."""
    name = settings.data_set
    rows = load_rows(name, split="train", rows=settings.data_sets[name], own_data=settings.own_data)
    writing = settings.sampling | {"max_new_tokens": settings.rewrite_tokens, "attempts": settings.rewrite_attempts}
    sets, statistics = {}, {}
    for which in [WRITTEN_FOR[settings.arm]] if settings.arm in WRITTEN_FOR else []:
        path = files.generated(f"{name}-{which}")
        judged = distillation.judge(rows, distillation.rewrite(settings.model, rows, path=path, which=which, **writing))
        statistics[which] = distillation.statistics(rows, judged)
        sets[which] = {row["id"]: row for row in judged}
    if "text_kd" in settings.arms:
        texts = {"names": settings.calibration_sets, "own_data": settings.own_data}
        text = training_rows.plain_text(store.load_tokenizer(settings.model), rows, **texts)
        sets["text"] = {row["id"]: row for row in text}
    return Rewritten(rows=rows, sets=sets, statistics=statistics)


def heal(settings: Settings, files: Run, *, checkpoint: Path, made: Rewritten) -> tuple[Path, dict]:
    """The adapter that was trained on the pruned model, and the report of its training."""
    arm, tokenizer = settings.arm, store.load_tokenizer(checkpoint)
    if learners := scored_arms([arm]):
        encoded = training_rows.encoded(tokenizer, made.rows, made.sets, learners)
        teacher.write(settings.model, encoded, folder=files.teacher(settings.data_set))
    paired = finetuning.paired_sets(tokenizer, made.rows, made.sets, arms=[arm], max_length=settings.max_length)
    adapter = files.folder / "adapters" / f"{checkpoint.name}-{arm}"
    taught = {"original": settings.model, "distributions": files.teacher(settings.data_set)}
    report = finetuning.finetune(
        checkpoint, paired[arm], adapter=adapter, loss=loss_of(arm), **settings.training, **taught
    )
    return adapter, report


def merge(files: Run, *, checkpoint: Path, adapter: Path) -> tuple[Path, float]:
    """The folder of the pruned model with its adapter merged in, and the share of the update that rounding lost."""
    folder = files.folder / "checkpoints" / adapter.name
    made = {"adapter": file_sha256(adapter / ADAPTER_WEIGHTS), "pruned": made_of(checkpoint)}
    known = _made_by(folder)
    if {name: known.get(name) for name in made} != made:
        model, tokenizer, lost = store.load_merged(checkpoint, adapter=adapter, dtype=torch.bfloat16)
        known = store.read_manifest(checkpoint)["recipe"] | made | {"merge_rounding": lost}
        store.save_model(model, tokenizer, folder=folder, parent=checkpoint.name, recipe=known)
    return folder, known["merge_rounding"]


def score(settings: Settings, files: Run, *, model: str | Path, name: str) -> dict[str, dict]:
    """A model's scores by task, the user's held-out rows first; see `base.records.Score`."""
    path = files.scores(name)
    tasks = evaluation.evaluate_model(model, path=path, **settings.scoring)
    return {HELD_OUT: _held_out(settings, files, model=model)} | tasks


def _held_out(settings: Settings, files: Run, *, model: str | Path) -> dict:
    """Bits per byte of the held-out responses, the token that ends a turn included, a document per row."""
    names = {"rows": settings.held_out, "own_data": settings.own_data}
    rows = load_rows(settings.data_set, split="test", **names)
    texts = [row["response"] for row in rows]
    nll = fidelity.response_nll(model, rows, {HELD_OUT: texts}, path=files.generated("likelihoods"))[HELD_OUT]
    ids = store.load_tokenizer(model)(texts, add_special_tokens=False)["input_ids"]
    tokens, bytes_ = (np.array([len(part) for part in parts]) for parts in (ids, [text.encode() for text in texts]))
    bits = np.array(nll) * (tokens + 1) / bytes_ / math.log(2)
    spread = float(bits.std(ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else 0.0
    measured = {"value": float(bits.mean()), "stderr": spread, "documents": bits.tolist()}
    return {"metric": BITS, "n": len(bits), "chance": 0.0, BITS: measured}


def answer(settings: Settings, files: Run, *, model: str | Path, name: str) -> list[dict]:
    """A model's greedy answers to held-out questions: rows {id, question, text, ...}."""
    names = {"rows": settings.answer_prompts, "own_data": settings.own_data}
    questions = {row["id"]: question_of(row) for row in load_rows(settings.data_set, split="test", **names)}
    writing = settings.sampling | {"max_new_tokens": settings.answer_tokens, "path": files.generated(f"answers-{name}")}
    return fidelity.answer_questions(model, questions, **writing)["greedy"]


def answer_similarities(settings: Settings, answers: dict[str, list[dict]]) -> dict[str, np.ndarray]:
    """By model, the cosine of each answer to the original's. Questions that the original left unanswered do not count.

    Args:
        answers: by model, `original` among them.

    Raises:
        ValueError: the original answered nothing.
    """
    answered = [number for number, row in enumerate(answers["original"]) if row["text"]]
    if not answered:
        raise ValueError(f"{settings.model!r} answers no held-out question: use an instruct model")
    texts = {name: [rows[number]["text"] for number in answered] for name, rows in answers.items()}
    reference = texts.pop("original")
    return {
        name: answer_similarity.similarities(found, reference, encoder=settings.encoder)
        for name, found in texts.items()
    }


def data_fingerprint(settings: Settings) -> str:
    """The fingerprint of all rows of the data set, in their order."""
    splits = (load_rows(settings.data_set, split=split, rows=0, own_data=settings.own_data) for split in SPLITS)
    return fingerprint([row for rows in splits for row in rows])
