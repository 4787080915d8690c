"""Fine-tune a pruned model with LoRA, one arm per source of responses, on the same rows and steps.

SFT trains on the original responses and Self-Data FT on the distilled ones (`arms` has them all); everything else
is the same: rows, order, steps, template, seed. The loss is cross-entropy on response tokens only (arXiv 2410.09982).
"""

import json
from pathlib import Path

from datasets import Dataset

from sdd_utils.base import precision
from sdd_utils.base.files import digest, read_json_lines
from sdd_utils.base.import_graph import code_digest
from sdd_utils.data.arms import ARMS
from sdd_utils.data.rows import fingerprint, question_of
from sdd_utils.models import chat_format, store
from sdd_utils.steps import lora_training


def encode(tokenizer, row: dict, response: str) -> dict:
    """Token ids of prompt and response, and which of them the loss sees.

    The prompt ends where the assistant's turn begins. The response ends with the token that ends a turn in the
    model's chat format, which is trained: masking goes by position, because the padding token may be the same id.

    Returns:
        {input_ids, completion_mask}: two lists of one length; the mask is 1 on response tokens and the end.
    """
    prompt = chat_format.render(tokenizer, [{"role": "user", "content": question_of(row)}])
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(response, add_special_tokens=False)["input_ids"] + [chat_format.turn_end(tokenizer)]
    return {
        "input_ids": prompt_ids + response_ids,
        "completion_mask": [0] * len(prompt_ids) + [1] * len(response_ids),
    }


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
    """One training set per arm, with the same rows in the same order.

    A row that is longer than `max_length` tokens in one arm leaves all: otherwise the arms would differ in more than
    the responses.

    Raises:
        ValueError: a generated set lacks a row, or no row fits.
    """
    _check_rows(rows, sets)
    encoded = _encoded(tokenizer, rows, sets, arms)
    longest = [max(len(arm_rows[i]["input_ids"]) for arm_rows in encoded.values()) for i in range(len(rows))]
    fitting = [row for row, length in zip(rows, longest, strict=True) if length <= max_length]
    if not fitting:
        raise ValueError(f"no training row fits into max_length = {max_length} tokens: raise max_length")
    # Once more, for an arm may give a row's response in view of the other rows.
    return {arm: Dataset.from_list(arm_rows) for arm, arm_rows in _encoded(tokenizer, fitting, sets, arms).items()}


def _check_rows(rows: list[dict], sets: dict[str, dict[str, dict]]) -> None:
    for name, written in sets.items():
        missing = [row["id"] for row in rows if row["id"] not in written]
        if missing:
            fix = "run notebooks/03_self_data_distillation.ipynb with as many rows first"
            raise ValueError(
                f"the {name} set lacks {len(missing)} of {len(rows)} rows, the first is {missing[0]!r}: {fix}"
            )


def _encoded(tokenizer, rows: list[dict], sets: dict, arms: list[str]) -> dict[str, list[dict]]:
    return {
        arm: [encode(tokenizer, row, response) for row, response in zip(rows, ARMS[arm](rows, sets), strict=True)]
        for arm in arms
    }


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
) -> dict:
    """Train one LoRA adapter on a checkpoint and save it; a finished adapter is not trained again.

    A killed training goes on from its last checkpoint. Several visible GPUs share the rows of every step.

    Args:
        folder: the pruned checkpoint.
        data: rows from `paired_sets`.
        adapter: where the adapter goes, with `training.json` beside its weights.
        lora_targets: "all-linear", or module names separated by commas ("q_proj,v_proj").
        trained_tokens: stop at this many tokens with loss, see `token_budget`; 0 is no limit.

    Returns:
        {rows, steps, trained_tokens, seen_tokens, loss: [[step, value], ...]}; rows of the set, tokens over all
        epochs, `trained` being those that the loss sees.
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
    key = _key(folder, data, settings)
    return _finished(adapter, key) or lora_training.run(folder, data, adapter=adapter, key=key, settings=settings)


def _key(folder: Path, data: Dataset, settings: dict) -> str:
    """Digest of everything an adapter depends on: weights, rows, settings, precision, and the code that trains it."""
    code = code_digest([lora_training.__name__], rooms=("steps", "engine"))
    return digest(store.identity(folder), data.to_dict(), settings, precision.dtype_name(), code)


def _finished(adapter: Path, key: str) -> dict | None:
    """The report of an adapter that was trained with just these settings, if there is one."""
    report = adapter / "training.json"
    saved = json.loads(report.read_text()) if report.is_file() else {}
    return saved["report"] if saved.get("key") == key else None
