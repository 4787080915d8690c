"""What a job costs, by arithmetic: from a model's architecture, a study's keys, token lengths and a throughput.

Lengths are means over rows or documents, so totals are estimates of sums. The rules of cost stand at the head of
`throughput.yaml`; memory is in `memory`.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import yaml

from sdd_utils.base.strategies import PAPERS, draws_of
from sdd_utils.data.arms import scored_arms, sets_of
from sdd_utils.models.architecture import Shape
from sdd_utils.sweep.token_lengths import (
    context_of,
    documents_of,
    response_of,
    rewritten,
    rows_of,
    set_lengths,
    task_lengths,
    trained_row,
)

HERE = Path(__file__).parent
TEACHER_BYTES = 258  # of a position's distribution: 65 half-precision numbers and 64 tokens of 16 bits
REJECTED = 0.5  # share of an attempt's rewrites, assumed: benchmarks/rewrite_wordings.json has from 5 to 80 %


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
    """What every estimate of a plan starts from; `shapes` by block size, 0 being the original.

    `attends_to_all` says that no layer has a window or a state in place of keys: such models are decoded in slots, and
    choices scored behind a context that is read once.
    """

    study: object
    machine: SimpleNamespace
    shapes: dict[int, Shape]
    attends_to_all: bool = True

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


def read_seconds(costs: CostModel, n: int, tokens: float) -> float:
    """Seconds of forward passes."""
    return 2 * costs.shapes[n].matmul * tokens / costs.machine.read_flops


def train_seconds(costs: CostModel, n: int, tokens: float) -> float:
    """Seconds of forward and backward passes through a frozen base."""
    return (6 if costs.machine.checkpointing else 4) * costs.shapes[n].matmul * tokens / costs.machine.train_flops


def start_seconds(costs: CostModel, *models: int) -> float:
    """Seconds of starting a job and of reading, or writing, the checkpoints of these block sizes."""
    loads = (costs.machine.load_seconds + costs.bytes_of(n) / costs.machine.disk_bandwidth for n in models)
    return costs.machine.job_seconds + sum(loads)


def decode_seconds(costs: CostModel, n: int, *, rows: int, context: float, new: float, batch: int) -> float:
    """Seconds of reading `rows` prompts of `context` tokens and generating `new` tokens for each.

    `batch` rows are decoded at once where the machine has no continuous batching."""
    batch = costs.machine.sequences or batch
    rounds = max(rows / batch, 1) if costs.machine.sequences else ceil(rows / batch)
    cached = cache_bytes(costs, n, min(rows, batch) * (context + new / 2))
    step_seconds = (costs.bytes_of(n) + cached) / costs.machine.bandwidth
    return read_seconds(costs, n, rows * (context + new)) + rounds * new * step_seconds


def cache_bytes(costs: CostModel, n: int, tokens: float) -> float:
    """Bytes of the keys and values of `tokens` tokens."""
    return tokens * costs.shapes[n].kv_width * costs.machine.dtype_bytes


def evaluation(costs: CostModel, n: int) -> Estimate:
    """One model on all tasks."""
    read = generated = seconds = 0.0
    study, batch = costs.study, costs.study.evaluation_batch
    for task in study.tasks:
        length, documents, context = task_lengths(task), documents_of(study, task), context_of(study, task)
        new = length.get("decode", 0)
        seconds += decode_seconds(costs, n, rows=documents, context=context, new=new, batch=batch)
        read, generated = read + documents * context, generated + documents * new
    return Estimate(read=read, generated=generated, seconds=seconds)


def layer_bytes(costs: CostModel, n: int, tokens: float) -> float:
    """Bytes of what one layer computes: its linear maps' inputs and outputs, half as much again for the rest."""
    return tokens * 1.5 * costs.shapes[n].layer_width * costs.machine.dtype_bytes


def fidelity(costs: CostModel, n: int, *, models: int = 1) -> Estimate:
    """The original and, one after the other, so many models of one size read all of the original's answers."""
    lengths = [set_lengths(name)["prompt"] + costs.study.answer_tokens for name in costs.study.data_sets]
    read = costs.study.answer_prompts * sum(lengths)
    seconds = read_seconds(costs, 0, read) + read_seconds(costs, n, read)
    loads = start_seconds(costs, 0, *[n] * models) - costs.machine.job_seconds
    return Estimate(read=2 * models * read, seconds=loads + models * seconds)


def similarity(costs: CostModel) -> Estimate:
    """One pass of the original over the calibration set; strategies to compare with read a second set as well, and
    `iterative` either set once per layer."""
    sets, longest = [set_lengths(name) for name in costs.study.calibration_sets], costs.study.max_length
    lengths = [min(length["prompt"] + length["response"], longest) for length in sets]
    compared, again = len(costs.study.selection) > 1, "iterative" in costs.study.selection
    passes = (1 + compared) * (max(costs.study.block_sizes) if again else 1)
    read = passes * costs.study.calibration_rows * sum(lengths) / len(sets)
    return Estimate(read=read, seconds=start_seconds(costs, 0) + read_seconds(costs, 0, read))


def pruned(costs: CostModel, block_size: int) -> Estimate:
    """Load the original, cut, save, load the checkpoint while the original is still there, score and compare it.

    Block size 0 also answers the held-out questions.
    """
    scored, compared = evaluation(costs, block_size), fidelity(costs, block_size)
    answered = Estimate() if block_size else _answering(costs)
    return Estimate(
        read=scored.read + compared.read + answered.read,
        generated=scored.generated + answered.generated,
        seconds=start_seconds(costs, 0, block_size, block_size) + scored.seconds + compared.seconds + answered.seconds,
        disk=costs.bytes_of(block_size),
    )


def selected(costs: CostModel, block_size: int) -> Estimate:
    """Each choice of the strategies beside the paper's: cut, save, score, compare, delete."""
    models = sum(draws_of(strategy) for strategy in costs.study.selection if strategy != PAPERS)
    one = pruned(costs, block_size)
    again = one.seconds - costs.machine.job_seconds  # a job starts once
    return Estimate(
        read=models * one.read,
        generated=models * one.generated,
        seconds=costs.machine.job_seconds + models * again,
        disk=one.disk,
    )


def _answering(costs: CostModel) -> Estimate:
    """The original, loaded once per data set, answers the held-out questions, greedily and by sampling."""
    answers, new, batch = 2 * costs.study.answer_prompts, costs.study.answer_tokens, costs.study.generation_batch
    contexts = [set_lengths(name)["prompt"] for name in costs.study.data_sets]
    decoding = sum(
        decode_seconds(costs, 0, rows=answers, context=context, new=new, batch=batch) for context in contexts
    )
    return Estimate(
        read=answers * sum(contexts),
        generated=answers * new * len(contexts),
        seconds=decoding + start_seconds(costs, *[0] * len(contexts)) - costs.machine.job_seconds,
    )


def distillation(costs: CostModel, data_set: str) -> Estimate:
    """The original writes every row anew, once per set, and again where it was rejected; loaded for each attempt.

    In fixed batches every row takes the steps of the longest. Where arms learn from distributions, it reads their rows.
    """
    batch, sets, new = costs.study.generation_batch, len(sets_of(costs.study.arms)), rewritten(costs.study, data_set)
    rows, lengths = rows_of(costs.study, data_set), set_lengths(data_set)
    context = lengths["rewrite_prompt"]
    steps = new if costs.machine.sequences else costs.study.rewrite_tokens
    attempts = [rows * REJECTED**earlier for earlier in range(costs.study.rewrite_attempts)]
    decoding = sum(decode_seconds(costs, 0, rows=n, context=context, new=steps, batch=batch) for n in attempts)
    written, kept = sum(attempts) * new, rows * (lengths["response"] + new)
    scored, scored_disk = _scored(costs, data_set, rows)
    return Estimate(
        read=sets * sum(attempts) * context + scored,
        generated=sets * written,
        seconds=start_seconds(costs, *[0] * (sets * len(attempts) + 1 + bool(scored)))
        + sets * decoding
        + read_seconds(costs, 0, scored),
        disk=sets * (written + kept) * 5 + scored_disk,  # text: about 5 bytes a token
    )


def _scored(costs: CostModel, data_set: str, rows: int) -> tuple[float, float]:
    """Tokens that the original reads for the arms that learn its distributions, and what these take on disk."""
    arms = scored_arms(costs.study.arms)
    read = rows * sum(trained_row(costs.study, data_set, arm) for arm in arms)
    return read, TEACHER_BYTES * rows * sum(response_of(costs.study, data_set, arm) for arm in arms)


def finetuning(costs: CostModel, *, block_size: int, data_set: str, rows: int) -> Estimate:
    """Every arm: train an adapter, load the model with it beside the weights, score it and compare it."""
    scored, arms = evaluation(costs, block_size), len(costs.study.arms)
    compared = fidelity(costs, block_size, models=arms)
    trained = costs.study.epochs * rows * sum(trained_row(costs.study, data_set, arm) for arm in costs.study.arms)
    start = start_seconds(costs, *[block_size] * 2 * arms)
    answered = _on_policy(costs, block_size, data_set, rows) if "on_policy" in costs.study.arms else Estimate()
    return Estimate(
        read=arms * scored.read + compared.read + answered.read,
        trained=trained,
        generated=arms * scored.generated + answered.generated,
        seconds=start
        + train_seconds(costs, block_size, trained)
        + arms * scored.seconds
        + compared.seconds
        + answered.seconds,
        disk=arms * 4 * costs.shapes[block_size].adapter,
    )


def _on_policy(costs: CostModel, n: int, data_set: str, rows: int) -> Estimate:
    """Within a fine-tuning: the pruned model answers the prompts, a step's at once, and the original reads that."""
    rows, batch = costs.study.epochs * rows, costs.study.batch_size
    context, new = set_lengths(data_set)["prompt"], response_of(costs.study, data_set, "on_policy")
    read = rows * (context + new)
    decoding = decode_seconds(costs, n, rows=rows, context=context, new=new, batch=batch)
    loads = start_seconds(costs, 0) - costs.machine.job_seconds
    seconds = loads + decoding + read_seconds(costs, 0, read)
    return Estimate(read=read, generated=rows * new, seconds=seconds)


def merging(costs: CostModel, *, block_size: int, data_sets: tuple[str, str]) -> Estimate:
    """Both parents written out, each point between them merged and scored as LERP, and one of their task vectors.

    The folders are deleted. SLERP of whole weights is LERP where every tensor falls back to it, as fine-tunes of one
    model do; else it is scored as well, which is not known before.
    """
    between, scored = sum(0 < t < 1 for t in costs.study.slerp_t), evaluation(costs, block_size)
    points = between + 1
    # Read and write each parent; per point between them read two and write one; load what is scored.
    passes = 4 + 3 * between + points
    mixed = _mixture(costs, block_size, data_sets) if costs.study.train_on_mixture else Estimate()
    return Estimate(
        read=points * scored.read + mixed.read,
        trained=mixed.trained,
        generated=points * scored.generated + mixed.generated,
        seconds=start_seconds(costs, *[block_size] * passes) + points * scored.seconds + mixed.seconds,
        disk=3 * costs.bytes_of(block_size),
    )


def _mixture(costs: CostModel, n: int, data_sets: tuple[str, str]) -> Estimate:
    """Train one adapter on half the rows of either set and score it, within another job."""
    scored, rows = evaluation(costs, n), min(rows_of(costs.study, name) for name in data_sets)
    lengths = [set_lengths(name)["prompt"] + response_of(costs.study, name, "self_data_ft") for name in data_sets]
    trained = costs.study.epochs * rows * sum(min(length, costs.study.max_length) for length in lengths) / 2
    loads = start_seconds(costs, n, n) - costs.machine.job_seconds
    return Estimate(
        read=scored.read,
        trained=trained,
        generated=scored.generated,
        seconds=loads + train_seconds(costs, n, trained) + scored.seconds,
    )


def speculative_decoding(costs: CostModel) -> Estimate:
    """The original and every draft read the original's answers; then one draft decodes, in float32 and row by row.

    Half of the drafted tokens are taken to be accepted, so a pass of the original gives two.
    """
    study, sets = costs.study, [set_lengths(name)["prompt"] for name in costs.study.data_sets]
    tuned = len(study.arms) * len(sets) * len(study.seeds)
    drafts = [n for n in study.block_sizes for _ in range(1 + tuned * (n in study.finetune_block_sizes))]
    answers = study.answer_prompts * sum(context + study.answer_tokens for context in sets)
    prompts = study.speculation["draft_prompts"] * len(sets)
    new, drafted = prompts * study.answer_tokens, study.speculation["draft_tokens"]
    n = study.finetune_block_sizes[0]
    steps = {0: 1.5 * new, n: new / 2 * drafted}
    decoding = sum(count * 4 * costs.shapes[size].matmul / costs.machine.bandwidth for size, count in steps.items())
    reading = sum(read_seconds(costs, size, answers) for size in (0, *drafts))
    loads = start_seconds(costs, 0, *drafts, *[0] * len(study.block_sizes), *study.block_sizes, 0, n)
    return Estimate(read=answers * (1 + len(drafts)), generated=2 * new, seconds=loads + reading + decoding)


def quantization(costs: CostModel) -> Estimate:
    """The original, the pruned models and one fine-tuned one per data set, each written, scored and compared in every
    format. The folders are deleted."""
    study = costs.study
    models = [0, *(n for n in study.finetune_block_sizes for _ in range(1 + len(study.data_sets)))]
    every = [n for n in models for _ in range(1 + len(study.quantization["formats"]))]
    scored, compared = [evaluation(costs, n) for n in every], [fidelity(costs, n) for n in every]
    work = [*scored, *compared]
    return Estimate(
        read=sum(part.read for part in work),
        generated=sum(part.generated for part in scored),
        seconds=start_seconds(costs, 0, *every, *every) + sum(part.seconds for part in work),
        disk=sum(costs.bytes_of(n) for n in every),
    )


def embedding_similarity(costs: CostModel, *, block_size: int, data_set: str) -> Estimate:
    """Greedy and sampled answers of every arm and of the pruned model, decoded together, each as long as may be."""
    answers, new, batch = 2 * costs.study.answer_prompts, costs.study.answer_tokens, costs.study.generation_batch
    context, answering = set_lengths(data_set)["prompt"], [block_size] * (len(costs.study.arms) + 1)
    decoding = sum(decode_seconds(costs, n, rows=answers, context=context, new=new, batch=batch) for n in answering)
    return Estimate(
        read=len(answering) * answers * context,
        generated=len(answering) * answers * new,
        seconds=start_seconds(costs, *answering) + decoding,
    )
