"""LoRA training without padding, beside TRL's SFTTrainer as its defaults pad; the same rows, order and settings."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from benchmarks import roofline, some_rows
from sdd_utils.base import precision
from sdd_utils.models import store
from sdd_utils.steps import finetuning, lora_training

NAME = "fine-tuning"
FULL = {"rows": 16, "batch_size": 8}  # as many rows a step as TRL's default
LARGE = MEMORY = {"rows": 8}
SMALL = {"rows": 4, "batch_size": 2}
DTYPE = "float32"  # so that the losses can be compared closely
ALLOWED = {"float32": 1e-3, "bfloat16": 0.05}  # difference of a loss
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
        max_length=None, completion_only_loss=True, gradient_checkpointing=False, use_cpu=True,
        bf16=precision.compute_dtype() == torch.bfloat16,
        seed=SETTINGS["seed"], logging_steps=1, save_strategy="no", report_to="none",
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = lora_training.schedule(state["set"], epochs=1, batch_size=state["batch_size"], trained_tokens=0, seed=0)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    trainer.model.save_pretrained(place)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


PEERS = {"TRL SFTTrainer, batches padded as by default": (padded, 1)}


def least_seconds(model, state, answer) -> float:
    """Of the products of a training on these rows, at the rate of products."""
    tokens, trained = (
        sum(map(fold, state["set"][name])) for fold, name in ((len, "input_ids"), (sum, "completion_mask"))
    )
    flops = roofline.training_flops(roofline.shape(model), tokens=tokens, trained=trained)
    return flops / roofline.product_rate(model)


def same(state, ours, peer) -> tuple[bool, str]:
    gap = float(np.abs(np.subtract(ours, peer)).max())  # keeps a NaN, as Python's max does not
    tokens = sum(map(len, state["set"]["input_ids"]))
    work = f"{len(peer)} steps of {state['batch_size']} rows of {some_rows.NAME}, {tokens} tokens"
    return gap < ALLOWED[precision.dtype_name()], f"{work}, largest difference of a loss {gap:.0e}"
