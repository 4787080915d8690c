"""Fine-tune a pruned model with LoRA, one arm per source of responses and loss, on the same rows and steps.

SFT trains on the original responses and Self-Data FT on the distilled ones (`arms` has them all); everything else
is the same: rows, order, steps, template, seed. The loss is cross-entropy on response tokens only (arXiv 2410.09982),
or a divergence from the unpruned model at as many tokens (`distillation_loss`).
"""

import json
from pathlib import Path

from datasets import Dataset

from sdd_utils.base import precision
from sdd_utils.base.files import digest, read_json_lines
from sdd_utils.base.import_graph import code_digest
from sdd_utils.data.arms import CROSS_ENTROPY, FORWARD_KL, REVERSE_KL
from sdd_utils.data.rows import fingerprint
from sdd_utils.models import adapters, architecture, store
from sdd_utils.steps import lora_training, teacher
from sdd_utils.steps.training_rows import encoded


def read_sets(paths: dict[str, Path], *, fingerprints: dict[str, str]) -> dict[str, dict[str, dict]]:
    """The generated sets that the arms learn from, {set: {row id: row}}; see `distillation.judge`.

    Args:
        fingerprints: by set, from the record of 03.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it was written anew since.
    """
    sets = {name: read_json_lines(path) for name, path in paths.items()}
    for name, rows in sets.items():
        if fingerprint(rows) != fingerprints.get(name):
            fix = "run notebooks/03_self_data_distillation.ipynb again"
            raise ValueError(f"{paths[name].name} is not the {name} set that the record of 03 names: {fix}")
    return {name: {row["id"]: row for row in rows} for name, rows in sets.items()}


def paired_sets(
    tokenizer, rows: list[dict], sets: dict[str, dict[str, dict]], *, arms: list[str], max_length: int
) -> dict[str, Dataset]:
    """One training set per arm, with the same rows in the same order, but for those that an arm does not learn.

    A row that is longer than `max_length` tokens in one arm leaves all: otherwise the arms would differ in more than
    the responses.

    Raises:
        ValueError: a generated set lacks a row, no row fits, or an arm learns none.
    """
    _check_rows(rows, sets)
    every = encoded(tokenizer, rows, sets, arms).values()
    longest = [max(len(row["input_ids"]) for row in same if row) for same in zip(*every, strict=True)]
    fitting = [row for row, length in zip(rows, longest, strict=True) if length <= max_length]
    if not fitting:
        raise ValueError(f"no training row fits into max_length = {max_length} tokens: raise max_length")
    # Once more, for an arm may give a row's response in view of the other rows.
    learnt = {arm: [row for row in same if row] for arm, same in encoded(tokenizer, fitting, sets, arms).items()}
    if empty := [arm for arm, arm_rows in learnt.items() if not arm_rows]:
        fix = "take it out of the study key 'arms', or raise rewrite_attempts or data_sets"
        raise ValueError(f"arm {empty[0]} has no row to learn, as no rewrite of these {len(fitting)} was kept: {fix}")
    return {arm: Dataset.from_list(arm_rows) for arm, arm_rows in learnt.items()}


def _check_rows(rows: list[dict], sets: dict[str, dict[str, dict]]) -> None:
    for name, written in sets.items():
        missing = [row["id"] for row in rows if row["id"] not in written]
        if missing:
            fix = "run notebooks/03_self_data_distillation.ipynb with as many rows first"
            raise ValueError(
                f"the {name} set lacks {len(missing)} of {len(rows)} rows, the first is {missing[0]!r}: {fix}"
            )


def token_budget(sets: dict[str, Dataset], *, epochs: int) -> int:
    """Tokens with loss of the arm that has fewest: where all arms stop if their trained tokens shall be equal."""
    return epochs * min(sum(map(sum, data["completion_mask"])) for data in sets.values())


def finetune(
    folder: Path,
    data: Dataset,
    *,
    adapter: Path,
    lora_rank: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_targets: str,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
    trained_tokens: int,
    loss: str = CROSS_ENTROPY,
    original: str | Path = "",
    distributions: Path = Path(),
) -> dict:
    """Train one LoRA adapter on a checkpoint and save it; a finished adapter is not trained again.

    A killed training goes on from its last checkpoint. Several visible GPUs share the rows of every step.

    Args:
        folder: the pruned checkpoint.
        data: rows from `paired_sets`.
        adapter: where the adapter goes, with `training.json` beside its weights.
        lora_targets: "all-linear", or module names separated by commas ("q_proj,v_proj").
        trained_tokens: stop at this many tokens with loss, see `token_budget`; 0 is no limit.
        loss: see `arms.loss_of`.
        original: name or folder of the unpruned model; of no use to cross-entropy.
        distributions: the folder that `teacher.write` filled; for forward KL.

    Returns:
        {rows, steps, trained_tokens, seen_tokens, loss: [[step, value], ...]}; rows of the set, tokens over all
        epochs, `trained` being those that the loss sees.

    Raises:
        ValueError: a row has no distributions, or what `lora_training.run` raises.
    """
    settings = {
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "lora_targets": lora_targets,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "trained_tokens": trained_tokens,
    }
    taught = {} if loss == CROSS_ENTROPY else {"loss": loss, "original": str(store.find_model(str(original)).resolve())}
    taught |= {"teacher": str(distributions.resolve())} if loss == FORWARD_KL else {}
    key = _key(folder, data, settings, taught)
    done = _finished(adapter, key)
    return done or lora_training.run(folder, data, adapter=adapter, key=key, settings=settings, taught=taught)


def _key(folder: Path, data: Dataset, settings: dict, taught: dict) -> str:
    """Digest of everything an adapter depends on: weights, rows, settings, loss, precision, and the code that trains
    it."""
    code = code_digest([lora_training.__name__], rooms=("steps", "engine"))
    learnt = taught and [taught["loss"], teacher.depends_on(taught["original"])]
    return digest(store.identity(folder), data.to_dict(), settings, learnt, precision.dtype_name(), code)


def _finished(adapter: Path, key: str) -> dict | None:
    """The report of an adapter that was trained with just these settings, if there is one."""
    saved = _saved(adapter)
    return saved["report"] if saved.get("key") == key else None


def _saved(adapter: Path) -> dict:
    report = adapter / adapters.REPORT
    return json.loads(report.read_text()) if report.is_file() else {}


def seconds_of(adapter: Path) -> list[float]:
    """Seconds that each step of a finished training took, answers that were written in it included."""
    return _saved(adapter)["seconds"]


def budget(report: dict, data: Dataset, *, loss: str, folder: Path, original: str | Path) -> dict:
    """What a training took of the unpruned model, and how much it computed, by arithmetic.

    A token costs 2 FLOPs per weight that multiplies it where it is read or generated, and 4 where it is trained on, as
    the frozen weights get no gradient; what gradient checkpointing computes twice is not counted. Distributions that
    several trainings share are counted for each.

    Args:
        report, data: what `finetune` gave and got.

    Returns:
        {teacher_tokens, generated_tokens, flops}: positions that the unpruned model scored and the pruned one learnt,
        each once, tokens that the pruned one wrote, and all products of both.
    """
    own, whole = (2 * architecture.account(store.load_config(name)).matmul for name in (folder, original))
    seen, scored, generated, read = report["seen_tokens"], 0, 0, 0
    if loss == FORWARD_KL:
        scored = min(sum(map(sum, data["completion_mask"])), report["trained_tokens"])
        read = min(sum(map(len, data["input_ids"])), seen)
    if loss == REVERSE_KL:
        scored = generated = report["trained_tokens"]
        read = seen
    flops = own * (2 * seen + (seen if generated else 0)) + whole * read
    return {"teacher_tokens": scored, "generated_tokens": generated, "flops": flops}
