"""Packed LoRA training beside TRL's padded batches, and by FSDP in one process beside the plain trainer."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from datasets import Dataset
from gpu.measure import Setup, computing_in, entry, equality, now, products
from trl import SFTTrainer

from benchmarks import some_rows
from sdd_utils import ROOT
from sdd_utils.models import store
from sdd_utils.steps import finetuning, lora_training

LORA = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_targets": "all-linear", "learning_rate": 5e-4}
LORA |= {"epochs": 1, "seed": 0, "trained_tokens": 0}
STEADY = 2  # steps before the clock counts
SCHEDULED = ("epochs", "seed", "trained_tokens")  # beside the size of a batch


@contextmanager
def clock() -> Iterator[list[float]]:
    """When each pass of a training has ended."""
    ends, plain = [], SFTTrainer.training_step

    def step(self, *args, **kwargs):
        loss = plain(self, *args, **kwargs)
        ends.append(now())
        return loss

    with mock.patch.object(SFTTrainer, "training_step", step):
        yield ends


@contextmanager
def by_trl(**changed) -> Iterator[None]:
    """Let TRL's own trainer train, with its own loss and some arguments changed."""
    plain = lora_training._arguments

    def arguments(*args, **kwargs):
        made = plain(*args, **kwargs)
        vars(made).update(changed)
        return made

    with mock.patch.multiple(lora_training, _arguments=arguments, Trainer=SFTTrainer):
        yield


def padded():
    """A context in which TRL trains as it does by default: batches padded behind a mask."""
    return by_trl(padding_free=False)


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Let a CPU train as a card does: TRL's own loss, gradient checkpointing, rows kept apart by a mask."""
    by_mask = mock.patch.object(lora_training.attention, "set_by_rows", return_value=False)
    with by_mask, by_trl(gradient_checkpointing=True):
        yield


def data_of(setup: Setup, count: int) -> Dataset:
    """The first rows as a training set of the arm SFT."""
    tokenizer = store.load_tokenizer(setup.pruned)
    return finetuning.paired_sets(tokenizer, some_rows.load(count), {}, arms=["sft"], max_length=1024)["sft"]


def job_of(setup: Setup, name: str) -> dict:
    settings = LORA | {"batch_size": setup.size["train_batch"]}
    return {"folder": str(setup.pruned), "adapter": str(setup.scratch / name), "key": "check", "settings": settings}


def losses_of(report: dict) -> np.ndarray:
    return np.array([loss for _, loss in report["loss"]])


def speed(setup: Setup, name: str, data: Dataset, report: dict, ends: list[float]) -> dict:
    """The entry of one training: each step behind the first few is a turn, scaled to a step of mean length."""
    batch, config = setup.size["train_batch"], store.load_config(setup.pruned)
    scheduled = lora_training.schedule(data, batch_size=batch, **{key: LORA[key] for key in SCHEDULED})
    lengths = np.array([*map(len, scheduled["input_ids"])]).reshape(-1, batch).sum(axis=1)[STEADY:]
    seconds = np.diff(ends[len(ends) // report["steps"] - 1 :: len(ends) // report["steps"]])[STEADY - 1 :]
    share = report["trained_tokens"] / report["seen_tokens"]
    tokens = int(lengths.mean())
    flops = 2 * products(config, read=tokens, predicted=round(tokens * share))  # backward: the inputs' gradients
    work = f"{report['steps']} steps of {batch} rows, {report['seen_tokens']} tokens, {share:.0%} of them with loss"
    turns = [*(seconds / lengths * tokens)]
    return entry(name, rate=setup.rate, tokens=tokens, flops=flops, seconds=turns, work=work)


def packed_and_padded(setup: Setup) -> list[dict]:
    """Both ways in bfloat16 for speed; in float32 the losses of every step beside each other."""
    data, made = data_of(setup, setup.size["train_rows"]), []
    ways = {"training, packed": contextmanager(lambda: (yield)), "training, padded": padded}
    with computing_in("bfloat16"):
        served = lora_training.keeps_rows_apart(store.load_model(setup.pruned)[0])
        for name, way in ways.items():
            with way(), clock() as ends:
                report = lora_training.train(job_of(setup, f"bfloat16 {name}"), data)
            made.append(speed(setup, name, data, report, ends))
    made[0]["served"] = {"rows end to end": served}
    few, losses = data.select(range(setup.size["exact_train_rows"])), {}
    with computing_in("float32"):
        for name, way in ways.items():
            with way():
                losses[name] = losses_of(lora_training.train(job_of(setup, f"float32 {name}"), few))
    apart = np.abs(np.subtract(*losses.values())).max()
    made[0]["equalities"] = [equality("packed losses and padded losses", apart, allowed=1e-3, unit="nats")]
    return made


def fsdp(setup: Setup) -> list[dict]:
    """One process that shards the model, in bfloat16 for speed, in float32 beside the trainer in this process."""
    data = data_of(setup, setup.size["train_rows"])
    few = data.select(range(setup.size["exact_train_rows"]))
    with computing_in("bfloat16"):
        report, seen = sharded(setup, "bfloat16 fsdp", data)
    made = speed(setup, "training, FSDP", data, report, seen["ends"])
    with computing_in("float32"):
        found, exact = sharded(setup, "float32 fsdp", few)
        expected = lora_training.train(job_of(setup, "float32 alone"), few)
    apart = np.abs(losses_of(found) - losses_of(expected)).max()
    whole = seen["whole"] + exact["whole"]
    made["equalities"] = [
        equality("losses by FSDP and without", apart, allowed=1e-4, unit="nats"),
        equality("parameters that FSDP left whole", whole, allowed=0, unit="parameters"),
    ]
    made["peak_mb"] = seen["peak_mb"]
    return [made]


def sharded(setup: Setup, name: str, data: Dataset) -> tuple[dict, dict]:
    """The report of a launched training of one process, and what `fsdp_worker` saw of it."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = mock.patch.dict(os.environ, PYTHONPATH=path)
    with environment, mock.patch.object(lora_training, "WORKER", ["-m", "gpu.fsdp_worker"]):
        job = job_of(setup, name)
        report = lora_training.launch(job, data, processes=1)
    return report, json.loads(Path(f"{job['adapter']}.seen.json").read_text())
