"""One LoRA training: order of the rows, trainer, checkpoints, processes.

On one device it runs in the calling process. Where several GPUs are visible it runs as a module, one process each:

    accelerate launch --config_file profiles/fsdp2.yaml --num_processes 2 -m sdd_utils.steps.lora_training job.json

Losses and adapter do not depend on the number of processes, beyond rounding and LoRA dropout. A killed training goes
on from its newest checkpoint, which lies beside the adapter until the adapter is saved.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets, load_from_disk
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sdd_utils import ROOT
from sdd_utils.base import disk, precision
from sdd_utils.base.files import whole_folder
from sdd_utils.data.arms import FORWARD_KL, REVERSE_KL
from sdd_utils.engine import attention, lora_linear, probe
from sdd_utils.models import adapters, store
from sdd_utils.steps import teacher
from sdd_utils.steps.on_policy import OnPolicyTrainer
from sdd_utils.steps.trainers import TeacherTrainer, Trainer, counted
from sdd_utils.steps.training_rows import rows_at_once

PROFILE = ROOT / "profiles" / "fsdp2.yaml"
# A checkpoint (adapter and Adam's moments) is small beside the model, and writing it short beside as many steps. A
# training of fewer steps writes one, at its end.
SAVE_STEPS = 20
WORKER = ["-m", "sdd_utils.steps.lora_training"]


def run(folder: Path, data: Dataset, *, adapter: Path, key: str, settings: dict, taught: dict | None = None) -> dict:
    """Train on every visible GPU, or on the CPU, and return the report that lies in the adapter's `training.json`.

    Args:
        folder: the pruned checkpoint.
        data: {input_ids, completion_mask} per row.
        adapter: where the adapter goes, complete or not at all.
        key: digest of all that the adapter depends on.
        settings: the keyword settings of `finetuning.finetune`.
        taught: {loss, original, teacher} where the loss is not cross-entropy, see `finetuning.finetune`.

    Raises:
        ValueError: the GPUs cannot share `batch_size` rows equally, or the model cannot answer on several.
        RuntimeError: the launched training failed; names its log.
        OSError: the disk is full.
    """
    job = {"folder": str(folder), "adapter": str(adapter), "key": key, "settings": settings, "taught": taught or {}}
    processes = max(1, torch.cuda.device_count())
    if processes > 1 and job["taught"].get("loss") == REVERSE_KL:
        raise ValueError(f"on_policy trains on one GPU, and {processes} are visible: name one in CUDA_VISIBLE_DEVICES")
    if settings["batch_size"] % processes:
        raise ValueError(
            f"batch_size = {settings['batch_size']} cannot be shared equally by {processes} GPUs: "
            f"make it a multiple of {processes}, or show fewer GPUs in CUDA_VISIBLE_DEVICES"
        )
    return train(job, data) if processes == 1 else launch(job, data, processes=processes)


def launch(job: dict, data: Dataset, *, processes: int) -> dict:
    """Train in processes of their own: a notebook's kernel must neither fork nor hold a process group."""
    job = job | {name: str(Path(job[name]).resolve()) for name in ("folder", "adapter")}
    place = checkpoints(job, processes=processes)
    place.mkdir(parents=True, exist_ok=True)
    data.save_to_disk(place / "data")
    (place / "job.json").write_text(json.dumps(job | {"data": str(place / "data")}))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(PROFILE)]
    command += ["--num_processes", str(processes), *WORKER, str(place / "job.json")]
    log = place / "log.txt"
    with log.open("w") as file:
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    if status and disk.is_full(log.read_text(errors="replace")):
        raise OSError(disk.FULL)
    if status:
        raise RuntimeError(f"training in {processes} processes ended with status {status}: read {log}; a rerun resumes")
    return json.loads((Path(job["adapter"]) / adapters.REPORT).read_text())["report"]


def train(job: dict, data: Dataset, *, processes: int = 1) -> dict:
    """Train in this process, which is one of `processes`; see `run`."""
    settings = job["settings"]
    place = checkpoints(job, processes=processes)
    arguments = _arguments(place, settings, processes=processes)  # first: it chooses this process's GPU
    model, tokenizer = store.load_model(job["folder"])
    check_targets(model, settings["lora_targets"])
    kind, given = _taught(job.get("taught") or {}, data)
    models = [model, *([given["original"]] if "original" in given else [])]
    if not all([*map(keeps_rows_apart, models)]):
        _read_at_once(arguments, 1)
        arguments.padding_free = False
    elif model.device.type == "cpu":
        longest = max(map(len, data["input_ids"]))
        _read_at_once(arguments, rows_at_once(arguments.per_device_train_batch_size, longest))
    names = ("epochs", "batch_size", "seed", "trained_tokens")
    scheduled = schedule(data, **{name: settings[name] for name in names})
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=scheduled,
        processing_class=tokenizer,
        peft_config=_lora(model, settings),
        callbacks=[KeepNewest()],
    )
    vars(trainer).update(given)
    if kind is not Trainer or model.device.type == "cpu":
        trainer.model_accepts_loss_kwargs = True  # our own loss divides by a step's tokens, whatever the model's knows
    with disk.told(), lora_linear.added_in_place(trainer.model):
        trainer.train(resume_from_checkpoint=newest(place))
    return _save(trainer, scheduled, job, len(data))


def _taught(taught: dict, data: Dataset) -> tuple[type[Trainer], dict]:
    """What trains by a loss, and what it needs of the unpruned model."""
    loss = taught.get("loss")
    if loss == FORWARD_KL:
        places = teacher.places(Path(taught["teacher"]), depends=teacher.depends_on(taught["original"]))
        teacher.check_complete(places, data)
        return TeacherTrainer, {"places": places}
    if loss == REVERSE_KL:
        original, _ = store.load_model(taught["original"])
        return OnPolicyTrainer, {"original": original.requires_grad_(False)}
    return Trainer, {}


def keeps_rows_apart(model) -> bool:
    """Whether a model reads rows that lie end to end as each alone; if it can, it attends by rows from here on."""
    pairs = functools.partial(_end_to_end, model)
    if attention.set_by_rows(model):
        if probe.agrees(model, "attention by rows", pairs, instead="a mask keeps rows apart in training"):
            return True
        model.set_attn_implementation("sdpa")
    return probe.agrees(model, "training on rows end to end", pairs, instead="each is read alone, for the same losses")


def _end_to_end(model) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of rows as TRL lays them end to end, and of each alone."""
    if attention.counts_from_start(model):
        raise NotImplementedError("its layers' chunks begin at fixed places of the sequence")
    rows = probe.random_rows(model, (5, 1, 9))
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([{"input_ids": row} for row in rows])
    batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    del batch["labels"]
    named = attention.named_rows(model, batch["position_ids"][0])
    found = model(**batch, **named, use_cache=False).logits[0].split([*map(len, rows)])
    yield from ((logits, probe.plain_logits(model, row)) for logits, row in zip(found, rows, strict=True))


def _read_at_once(arguments: SFTConfig, rows: int) -> None:
    """The same steps and losses from passes over so many rows of a batch, whose gradients are summed."""
    arguments.gradient_accumulation_steps = arguments.per_device_train_batch_size // rows
    arguments.per_device_train_batch_size = rows


def schedule(data: Dataset, *, epochs: int, batch_size: int, seed: int, trained_tokens: int) -> Dataset:
    """All rows in the order in which they are trained, every epoch shuffled anew and filled up to whole batches.

    A filler is one token without loss. With it each step's rows are a slice that any number of processes can share,
    where the trainer would repeat rows to give every process its part of an epoch's last batch.

    Args:
        trained_tokens: end before the row, the first apart, that would bring the tokens with loss above this; 0 is no
            limit.
    """
    filler = Dataset.from_dict({name: [[0]] for name in data.column_names}, features=data.features)
    random, fill = np.random.default_rng(seed), [len(data)] * (-len(data) % batch_size)
    order = [i for _ in range(epochs) for i in (*random.permutation(len(data)).tolist(), *fill)]
    if trained_tokens:
        tokens = np.array([*map(sum, data["completion_mask"]), 0])
        order = order[: max(1, np.searchsorted(tokens[order].cumsum(), trained_tokens, side="right"))]
        order += [len(data)] * (-len(order) % batch_size)
    return concatenate_datasets([data, filler]).select(order)


def checkpoints(job: dict, *, processes: int) -> Path:
    """Where the checkpoints of just this training lie: of these settings, data, weights and code, so sharded."""
    adapter = Path(job["adapter"])
    return adapter.with_name(f".{adapter.name}.checkpoints-{job['key']}-x{processes}")


def newest(place: Path) -> str | None:
    """The last complete checkpoint; one that was being written when the process died has another name."""
    checkpoint = max(place.glob("complete-*"), key=lambda folder: int(folder.name.split("-")[1]), default=None)
    return checkpoint and str(checkpoint)


class KeepNewest(TrainerCallback):
    """Rename a checkpoint when every process has written its part of it, then remove the one before."""

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        place = Path(args.output_dir)
        former = [*place.glob("complete-*")]
        (place / f"checkpoint-{state.global_step}").rename(place / f"complete-{state.global_step}")
        for folder in former:
            shutil.rmtree(folder)


def check_targets(model, targets: str) -> None:
    """Raise ValueError for a module that the model does not have, or that shares its weights with another.

    peft takes the others and says nothing; merging an update of tied embeddings would change the LM head, too.
    """
    named = [] if targets == "all-linear" else targets.split(",")
    kinds = {name.rsplit(".", 1)[-1]: type(module) for name, module in model.named_modules()}
    if missing := [name for name in named if name.rsplit(".", 1)[-1] not in kinds]:
        allowed = ", ".join(sorted(name for name, kind in kinds.items() if issubclass(kind, torch.nn.Linear)))
        raise ValueError(f"lora_targets names {missing[0]!r}: use 'all-linear', or of {allowed}, with commas only")
    last_parts = {name.rsplit(".", 1)[-1] for name in named}
    chosen = {module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in last_parts}
    if shared := adapters.tied_modules(model, chosen):
        raise ValueError(f"lora_targets names {shared[0]!r}, whose weights another module shares: leave it out")


def _lora(model, settings: dict) -> LoraConfig:
    """Not for layers that do more than a linear map, such as routers of experts: peft would call them as one."""
    targets = settings["lora_targets"]
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    special = [name for name, module in linear if not _is_linear_map(module)]
    return LoraConfig(
        r=settings["lora_rank"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=targets if targets == "all-linear" else targets.split(","),
        exclude_modules=special or None,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def _is_linear_map(module: torch.nn.Linear) -> bool:
    """Whether a subclass of Linear, by its own forward pass, still is the map of its weight."""
    if type(module).forward is torch.nn.Linear.forward:
        return True
    inputs = torch.ones(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        return torch.allclose(module(inputs), torch.nn.Linear.forward(module, inputs), rtol=0.05, atol=1e-3)
    except (RuntimeError, TypeError):  # other shapes, or a tuple
        return False


def _arguments(place: Path, settings: dict, *, processes: int) -> SFTConfig:
    """Every setting that TRL would otherwise choose for us (length, precision, checkpointing) is explicit.

    A batch is one sequence without padding: positions start anew with every row, and attention keeps the rows apart;
    see `keeps_rows_apart`.
    """
    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(place),
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # below 1: a share of all steps
        num_train_epochs=1,  # `schedule` holds all epochs
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings["batch_size"] // processes,
        max_length=None,
        packing=False,
        padding_free=True,
        completion_only_loss=True,
        gradient_checkpointing=gpu,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=precision.compute_dtype() == torch.bfloat16,
        use_cpu=not gpu,
        seed=settings["seed"],
        logging_steps=1,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        report_to="none",
    )


def _save(trainer: SFTTrainer, scheduled: Dataset, job: dict, rows: int) -> dict:
    """Put the adapter and its report in their place, then drop every checkpoint that led there."""
    adapter, with_loss = Path(job["adapter"]), [*map(sum, scheduled["completion_mask"])]
    seen = sum(len(ids) for ids, count in zip(scheduled["input_ids"], with_loss, strict=True) if count)
    report = {
        "rows": rows,
        "steps": trainer.state.global_step,
        "trained_tokens": round(counted(trainer, "trained_tokens")) or sum(with_loss),  # of answers written meanwhile
        "seen_tokens": round(counted(trainer, "seen_tokens")) or seen,
        "loss": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
    }
    weights = trainer.accelerator.get_state_dict(trainer.model)  # gathers the shards: every process takes part
    if trainer.is_world_process_zero():
        with whole_folder(adapter) as scratch:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(scratch, state_dict=weights)
            trained = {"key": job["key"], "weights": store.identity(Path(job["folder"])), "report": report}
            trained["seconds"] = [entry["seconds"] for entry in trainer.state.log_history if "seconds" in entry]
            (scratch / adapters.REPORT).write_text(json.dumps(trained))
        for place in adapter.parent.glob(f".{adapter.name}.checkpoints-*"):
            shutil.rmtree(place, ignore_errors=True)  # a network file system keeps what other processes have open
    return report


def main(path: str) -> None:
    """Take part in a launched training."""
    job = json.loads(Path(path).read_text())
    train(job, load_from_disk(job["data"]), processes=int(os.environ["WORLD_SIZE"]))


if __name__ == "__main__":
    main(sys.argv[1])
