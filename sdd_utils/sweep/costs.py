"""What a job costs, by arithmetic: from a model's architecture, a study's keys, token lengths and a throughput.

Lengths are means over rows or documents, so totals are estimates of sums; memory takes the longest that a study
allows. The rules of cost stand at the head of `throughput.yaml`.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import yaml

from sdd_utils.data.arms import sets_of
from sdd_utils.models.architecture import Shape
from sdd_utils.sweep.token_lengths import (
    context_of,
    documents_of,
    response_of,
    rewritten,
    rows_of,
    set_lengths,
    task_lengths,
)

HERE = Path(__file__).parent
HEAD_TILE = (4096, 32768)  # tokens and words whose logits TRL's standard loss holds at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A job: tokens read, trained on and generated; seconds; peak bytes of memory; bytes left on disk."""

    read: float = 0
    trained: float = 0
    generated: float = 0
    seconds: float = 0
    memory: float = 0
    disk: float = 0


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What every estimate of a plan starts from; `shapes` by block size, 0 being the original."""

    study: object
    machine: SimpleNamespace
    shapes: dict[int, Shape]

    def bytes_of(self, n: int) -> float:
        """Bytes of the weights of the model without n layers."""
        return self.shapes[n].parameters * self.machine.dtype_bytes


def load_machine(name: str) -> SimpleNamespace:
    """A machine of `throughput.yaml`; ValueError, in one sentence, for an unknown one."""
    machines = yaml.safe_load((HERE / "throughput.yaml").read_text(encoding="utf-8"))
    if name not in machines:
        raise ValueError(
            f"hardware {name!r} is unknown: use one of {', '.join(machines)}, or add it to throughput.yaml"
        )
    return SimpleNamespace(name=name, **machines[name])


def read_seconds(s: CostModel, n: int, tokens: float) -> float:
    """Seconds of forward passes."""
    return 2 * s.shapes[n].matmul * tokens / s.machine.read_flops


def train_seconds(s: CostModel, n: int, tokens: float) -> float:
    """Seconds of forward and backward passes through a frozen base."""
    return (6 if s.machine.checkpointing else 4) * s.shapes[n].matmul * tokens / s.machine.train_flops


def start_seconds(s: CostModel, *models: int) -> float:
    """Seconds of starting a job and of reading, or writing, the checkpoints of these block sizes."""
    loads = (s.machine.load_seconds + s.bytes_of(n) / s.machine.disk_bandwidth for n in models)
    return s.machine.job_seconds + sum(loads)


def resident(s: CostModel, *models: int) -> float:
    """Bytes of a process that holds the weights of these block sizes at once."""
    return s.machine.process_bytes + sum(map(s.bytes_of, models))


def decode_seconds(s: CostModel, n: int, *, rows: int, context: float, new: float, batch: int) -> float:
    """Seconds of reading `rows` prompts of `context` tokens and generating `new` tokens for each.

    `batch` rows are decoded at once where the machine has no continuous batching."""
    batch = s.machine.sequences or batch
    rounds = max(rows / batch, 1) if s.machine.sequences else ceil(rows / batch)
    cached = cache_bytes(s, n, min(rows, batch) * (context + new / 2))
    return read_seconds(s, n, rows * (context + new)) + rounds * new * (s.bytes_of(n) + cached) / s.machine.bandwidth


def cache_bytes(s: CostModel, n: int, tokens: float) -> float:
    """Bytes of the keys and values of `tokens` tokens."""
    return tokens * s.shapes[n].kv_width * s.machine.dtype_bytes


def evaluation(s: CostModel, n: int) -> Estimate:
    """One model on all tasks; memory is what comes on top of the weights."""
    read = generated = seconds = memory = 0.0
    for task in s.study.tasks:
        known, documents, context = task_lengths(task), documents_of(s.study, task), context_of(s.study, task)
        new, at_once = known.get("decode", 0), min(s.study.evaluation_batch, documents)
        seconds += decode_seconds(s, n, rows=documents, context=context, new=new, batch=s.study.evaluation_batch)
        read, generated = read + documents * context, generated + documents * new
        cached = cache_bytes(s, n, at_once * known["requests"] * (context + new))
        logits = at_once * context * s.shapes[n].vocabulary * 8 if known["kind"] == "rolling" else 0
        memory = max(memory, cached + logits + layer_bytes(s, n, at_once * context))
    return Estimate(read=read, generated=generated, seconds=seconds, memory=memory)


def layer_bytes(s: CostModel, n: int, tokens: float) -> float:
    """Bytes of what one layer computes: its linear maps' inputs and outputs, half as much again for the rest."""
    return tokens * 1.5 * s.shapes[n].layer_width * s.machine.dtype_bytes


def training_memory(s: CostModel, n: int) -> list[tuple[str, str, float]]:
    """(what, arithmetic, bytes) of fine-tuning, with all rows of an optimiser step at once, each `max_length` long."""
    own, tokens, width = s.shapes[n], s.study.batch_size * s.study.max_length, s.machine.dtype_bytes
    layer = f"{tokens:,} tokens x 1.5 x {own.layer_width:,.0f} values x {width} bytes"
    kept = f"{own.layers} layers x {layer}", own.layers * layer_bytes(s, n, tokens)
    if s.machine.checkpointing:
        kept = (
            f"{own.layers} layers x {tokens:,} tokens x {own.hidden:,} inputs x {width} bytes",
            own.layers * tokens * own.hidden * width,
        )
    rows, words = min(tokens, HEAD_TILE[0]), min(own.vocabulary, HEAD_TILE[1])
    head = f"2 x {rows:,} x {words:,} logits x {width} bytes + {tokens:,} tokens x {own.hidden:,} x 4 bytes"
    return [
        ("weights", f"{own.parameters:,} parameters x {width} bytes", s.bytes_of(n)),
        ("LoRA, gradients, Adam", f"{own.adapter:,} parameters x (4 + 4 + 8) bytes", own.adapter * 16),
        ("kept for backward", *kept),
        ("one layer at work", layer, layer_bytes(s, n, tokens)),
        ("LM head, in tiles", head, 2 * rows * words * width + tokens * own.hidden * 4),
        ("process", f"stated for {s.machine.name}", s.machine.process_bytes),
    ]


def fidelity(s: CostModel, n: int, *, models: int = 1) -> Estimate:
    """The original and, one after the other, so many models of one size read all of the original's answers."""
    asked = [set_lengths(name)["prompt"] + s.study.answer_tokens for name in s.study.data_sets]
    read = s.study.answer_prompts * sum(asked)
    seconds = read_seconds(s, 0, read) + read_seconds(s, n, read)
    logits = 4 * s.study.answer_tokens * s.shapes[n].vocabulary * 4  # two distributions and as much for the arithmetic
    loads = start_seconds(s, 0, *[n] * models) - s.machine.job_seconds
    return Estimate(read=2 * models * read, seconds=loads + models * seconds, memory=resident(s, 0, n) + logits)


def similarity(s: CostModel) -> Estimate:
    """One pass of the original over the calibration set."""
    sets, longest = [set_lengths(name) for name in s.study.calibration_sets], s.study.max_length
    read = s.study.calibration_rows * sum(min(own["prompt"] + own["response"], longest) for own in sets) / len(sets)
    memory = resident(s, 0) + layer_bytes(s, 0, s.study.calibration_batch * longest)
    return Estimate(read=read, seconds=start_seconds(s, 0) + read_seconds(s, 0, read), memory=memory)


def pruned(s: CostModel, block_size: int) -> Estimate:
    """Load the original, cut, save, load the checkpoint while the original is still there, score and compare it.

    Block size 0 also answers the held-out questions.
    """
    scored, compared = evaluation(s, block_size), fidelity(s, block_size)
    answered = Estimate() if block_size else _answering(s)
    return Estimate(
        read=scored.read + compared.read + answered.read,
        generated=scored.generated + answered.generated,
        seconds=start_seconds(s, 0, block_size, block_size) + scored.seconds + compared.seconds + answered.seconds,
        memory=max(resident(s, 0, block_size) + scored.memory, compared.memory, answered.memory),
        disk=s.bytes_of(block_size),
    )


def _answering(s: CostModel) -> Estimate:
    """The original, loaded once per data set, answers the held-out questions, greedily and by sampling."""
    asked, new, batch = 2 * s.study.answer_prompts, s.study.answer_tokens, s.study.generation_batch
    contexts = [set_lengths(name)["prompt"] for name in s.study.data_sets]
    decoding = sum(decode_seconds(s, 0, rows=asked, context=own, new=new, batch=batch) for own in contexts)
    at_once = min(asked, s.machine.sequences or batch)
    return Estimate(
        read=asked * sum(contexts),
        generated=asked * new * len(contexts),
        seconds=decoding + start_seconds(s, *[0] * len(contexts)) - s.machine.job_seconds,
        memory=resident(s, 0) + cache_bytes(s, 0, at_once * (max(contexts) + new)),
    )


def distillation(s: CostModel, data_set: str) -> Estimate:
    """The original writes every row anew, once per set; in fixed batches every row takes the steps of the longest."""
    batch, sets, new = s.study.generation_batch, len(sets_of(s.study.arms)), rewritten(s.study, data_set)
    rows, lengths = rows_of(s.study, data_set), set_lengths(data_set)
    context = lengths["rewrite_prompt"]
    steps = new if s.machine.sequences else s.study.rewrite_tokens
    at_once = min(rows, s.machine.sequences or batch)
    cached = cache_bytes(s, 0, at_once * (context + s.study.rewrite_tokens))
    decoding = decode_seconds(s, 0, rows=rows, context=context, new=steps, batch=batch)
    return Estimate(
        read=sets * rows * context,
        generated=sets * rows * new,
        seconds=start_seconds(s, *[0] * (sets + 1)) + sets * decoding,
        memory=resident(s, 0) + cached + layer_bytes(s, 0, at_once * context),
        disk=sets * rows * (lengths["response"] + 2 * new) * 5,  # text: about 5 bytes a token
    )


def finetuning(s: CostModel, *, block_size: int, data_set: str, rows: int) -> Estimate:
    """Every arm: train an adapter, load the model again with it merged in, score it and compare it."""
    known, scored, arms = set_lengths(data_set), evaluation(s, block_size), len(s.study.arms)
    compared = fidelity(s, block_size, models=arms)
    responses = [response_of(s.study, data_set, arm) for arm in s.study.arms]
    trained = s.study.epochs * rows * sum(min(known["prompt"] + r, s.study.max_length) for r in responses)
    training = sum(size for _, _, size in training_memory(s, block_size))
    start = start_seconds(s, *[block_size] * 2 * arms)
    return Estimate(
        read=arms * scored.read + compared.read,
        trained=trained,
        generated=arms * scored.generated,
        seconds=start + train_seconds(s, block_size, trained) + arms * scored.seconds + compared.seconds,
        memory=max(training, resident(s, block_size) + scored.memory, compared.memory),
        disk=arms * 4 * s.shapes[block_size].adapter,
    )


def merging(s: CostModel, *, block_size: int, data_sets: tuple[str, str]) -> Estimate:
    """Both parents written out, and each point between them merged twice, by SLERP and by LERP, loaded and scored.

    The folders are deleted. LERP costs nothing where every tensor falls back to it, which is not known before.
    """
    points, scored = 2 * sum(0 < t < 1 for t in s.study.slerp_t), evaluation(s, block_size)
    passes = 4 + 4 * points  # read and write each parent; per point read two, write one, load it
    mixed = _mixture(s, block_size, data_sets) if s.study.train_on_mixture else Estimate()
    return Estimate(
        read=points * scored.read + mixed.read,
        trained=mixed.trained,
        generated=points * scored.generated + mixed.generated,
        seconds=start_seconds(s, *[block_size] * passes) + points * scored.seconds + mixed.seconds,
        memory=max(resident(s, block_size, block_size) + scored.memory, mixed.memory),
        disk=3 * s.bytes_of(block_size),
    )


def _mixture(s: CostModel, n: int, data_sets: tuple[str, str]) -> Estimate:
    """Train one adapter on half the rows of either set and score it, within another job."""
    scored, rows = evaluation(s, n), min(rows_of(s.study, name) for name in data_sets)
    lengths = [set_lengths(name)["prompt"] + response_of(s.study, name, "self_data_ft") for name in data_sets]
    trained = s.study.epochs * rows * sum(min(length, s.study.max_length) for length in lengths) / 2
    loads = start_seconds(s, n, n) - s.machine.job_seconds
    return Estimate(
        read=scored.read,
        trained=trained,
        generated=scored.generated,
        seconds=loads + train_seconds(s, n, trained) + scored.seconds,
        memory=max(sum(size for _, _, size in training_memory(s, n)), resident(s, n) + scored.memory),
    )


def embedding_similarity(s: CostModel, *, block_size: int, data_set: str) -> Estimate:
    """Greedy and sampled answers of every arm, decoded together, each as long as may be."""
    context, batch, asked = set_lengths(data_set)["prompt"], s.study.generation_batch, 2 * s.study.answer_prompts
    new, answering = s.study.answer_tokens, [block_size] * len(s.study.arms)
    decoding = sum(decode_seconds(s, n, rows=asked, context=context, new=new, batch=batch) for n in answering)
    cached = cache_bytes(s, block_size, min(asked, s.machine.sequences or batch) * (context + new))
    return Estimate(
        read=len(answering) * asked * context,
        generated=len(answering) * asked * new,
        seconds=start_seconds(s, *answering) + decoding,
        memory=resident(s, block_size) + cached,
    )
