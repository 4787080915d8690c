"""LoRA training without padding, beside TRL's SFTTrainer as its defaults pad; the same rows, order and settings."""

import tempfile
from pathlib import Path

import numpy as np
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from benchmarks import some_rows
from sdd_utils.models import store
from sdd_utils.steps import finetuning, lora_training

NAME = "fine-tuning"
FULL = {"rows": 200, "batch_size": 4}  # as many rows a step as the studies take on a laptop
SMALL = {"rows": 6, "batch_size": 2}
DTYPE = "float32"  # so that the losses can be compared closely
SETTINGS = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_targets": "all-linear"}
SETTINGS |= {"learning_rate": 5e-4, "epochs": 1, "trained_tokens": 0, "seed": 0}


def prepare(model, *, scratch, rows: int, batch_size: int) -> dict:
    tokenizer = store.load_tokenizer(model)
    sets = finetuning.paired_sets(tokenizer, some_rows.load(rows), {}, arms=["sft"], max_length=512)
    return {"folder": store.find_model(str(model)), "set": sets["sft"], "batch_size": batch_size, "scratch": scratch}


def ours(state) -> list[float]:
    """The loss of every step."""
    adapter = Path(tempfile.mkdtemp(dir=state["scratch"])) / "adapter"
    settings = SETTINGS | {"batch_size": state["batch_size"]}
    return [loss for _, loss in finetuning.finetune(state["folder"], state["set"], adapter=adapter, **settings)["loss"]]


def padded(state) -> list[float]:
    model, tokenizer = store.load_model(state["folder"])
    place = tempfile.mkdtemp(dir=state["scratch"])
    arguments = SFTConfig(
        output_dir=place, learning_rate=SETTINGS["learning_rate"], lr_scheduler_type="cosine", warmup_steps=0.05,
        num_train_epochs=1, train_sampling_strategy="sequential", per_device_train_batch_size=state["batch_size"],
        max_length=None, completion_only_loss=True, gradient_checkpointing=False, bf16=False, use_cpu=True,
        seed=SETTINGS["seed"], logging_steps=1, save_strategy="no", report_to="none",
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = lora_training.schedule(state["set"], epochs=1, batch_size=state["batch_size"], trained_tokens=0, seed=0)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    trainer.model.save_pretrained(place)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


PEERS = {"TRL SFTTrainer, batches padded as by default": (padded, 1)}


def same(state, ours, peer) -> tuple[bool, str]:
    gap = float(np.abs(np.subtract(ours, peer)).max())  # keeps a NaN, as Python's max does not
    work = f"{len(peer)} steps of {state['batch_size']} rows of {some_rows.NAME}"
    return gap < 1e-3, f"{work}, largest difference of a loss {gap:.0e}"
