"""Fine-tune a pruned model with LoRA, one arm per source of responses, on equal budgets.

SFT trains on the original responses and Self-Data FT on the distilled ones; everything else is the same: rows,
order, steps, template, seed. The loss is cross-entropy on response tokens only (arXiv 2410.09982).
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from sdd_utils import models
from sdd_utils.distillation import question_of
from sdd_utils.generation import render

ARMS = ("sft", "self_data_ft")


def encode(tokenizer, row: dict, response: str) -> dict:
    """Token ids of prompt and response, and which of them the loss sees.

    The prompt ends where the assistant's turn begins. The response ends with the end-of-sequence token, which is
    trained: masking goes by position, because the padding token may be the same id.

    Returns:
        {input_ids, completion_mask}: two lists of one length; the mask is 1 on response tokens and the end.
    """
    prompt = render(tokenizer, [{"role": "user", "content": question_of(row)}])
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {
        "input_ids": prompt_ids + response_ids,
        "completion_mask": [0] * len(prompt_ids) + [1] * len(response_ids),
    }


def paired_sets(tokenizer, rows: list[dict], distilled: list[dict], *, max_length: int) -> dict[str, Dataset]:
    """One training set per arm, with the same rows in the same order.

    A row that is longer than `max_length` tokens in either arm leaves both: otherwise the arms would differ in
    more than the responses.
    """
    encoded = [
        {"sft": encode(tokenizer, row, row["response"]), "self_data_ft": encode(tokenizer, row, other["response"])}
        for row, other in zip(rows, distilled, strict=True)
    ]
    fitting = [pair for pair in encoded if all(len(pair[arm]["input_ids"]) <= max_length for arm in ARMS)]
    if not fitting:
        raise ValueError(f"no training row fits into max_length = {max_length} tokens: raise max_length")
    return {arm: Dataset.from_list([pair[arm] for pair in fitting]) for arm in ARMS}


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
) -> dict:
    """Train one LoRA adapter on a checkpoint and save it; a finished adapter is not trained again.

    Args:
        folder: the pruned checkpoint.
        data: rows from `paired_sets`.
        adapter: where the adapter goes, with `training.json` beside its weights.
        lora_targets: "all-linear", or module names separated by commas ("q_proj,v_proj").

    Returns:
        {rows, steps, trained_tokens, seen_tokens, loss: [[step, value], ...]}; tokens over all epochs, `trained`
        being those that the loss sees.
    """
    settings = {name: value for name, value in locals().items() if name not in ("folder", "data", "adapter")}
    key = _key(folder, data, settings)
    finished = _finished(adapter, key)
    if finished:
        return finished
    set_seed(seed)  # before the adapter's random initialisation, so that both arms start from the same weights
    model, tokenizer = models.load(folder)
    lora = LoraConfig(
        r=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=lora_targets if lora_targets == "all-linear" else lora_targets.split(","),
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _arguments(scratch, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, seed=seed)
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=lora
        )
        trainer.train()
        return _save(trainer, data, adapter=adapter, epochs=epochs, key=key)


def _key(folder: Path, data: Dataset, settings: dict) -> str:
    """Digest of everything an adapter depends on, this module's code included."""
    parts = [models.identity(folder), data.to_dict(), settings, models.sha256(Path(__file__))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(adapter: Path, key: str) -> dict | None:
    """The report of an adapter that was trained with just these settings, if there is one."""
    report = adapter / "training.json"
    found = json.loads(report.read_text()) if report.is_file() else {}
    return found["report"] if found.get("key") == key else None


def _arguments(scratch: str, *, learning_rate: float, epochs: int, batch_size: int, seed: int) -> SFTConfig:
    """Every setting that TRL would otherwise choose for us (length, precision, checkpointing) is explicit."""
    return SFTConfig(
        output_dir=scratch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # below 1: a share of all steps
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        max_length=None,
        packing=False,
        completion_only_loss=True,
        gradient_checkpointing=torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )


def _save(trainer: SFTTrainer, data: Dataset, *, adapter: Path, epochs: int, key: str) -> dict:
    history = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    report = {
        "rows": len(data),
        "steps": trainer.state.global_step,
        "trained_tokens": epochs * sum(map(sum, data["completion_mask"])),
        "seen_tokens": epochs * sum(map(len, data["input_ids"])),
        "loss": history,
    }
    adapter.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{adapter.name}-", dir=adapter.parent))
    try:
        trainer.model.save_pretrained(scratch)
        (scratch / "training.json").write_text(json.dumps({"key": key, "report": report}))
        models.replace_folder(scratch, adapter)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report
