"""How much memory a job holds at its peak, by arithmetic; the examples it was fitted to stand in its tests.

On a CPU a job keeps what it has freed, for new pages cost time (`run_notebook.KEEP_MEMORY`), and larger tensors do not
always fit into the gaps: `HEAP` stands for that.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

from sdd_utils.data.arms import FORWARD_KL, REVERSE_KL, loss_of
from sdd_utils.engine.packed_linear import MOST_BYTES
from sdd_utils.steps.training_rows import TOKENS_AT_ONCE
from sdd_utils.study.jobs import Job
from sdd_utils.sweep.costs import CostModel, layer_bytes
from sdd_utils.sweep.token_lengths import documents_of, longest_of, rewritten, set_lengths, task_lengths

NO_MODEL = 0.45e9  # bytes of a job that reads records only
ENCODER = 0.25e9  # bytes of the sentence encoder and its library
HEAP = 1.4  # resident bytes per byte in use, on a CPU
LONG_BATCH = 1.25  # tokens of a batch's rows over those of as many mean rows
HEAD_TILE = (4096, 32768)  # tokens and words whose logits TRL's standard loss holds at once


def peak(costs: CostModel, job: Job) -> float:
    """Bytes that a job holds at its peak, of the GPU's memory where the machine has one."""
    n, data_set = job.parameters.get("block_size", 0), job.parameters.get("data_set")
    by_step: dict[str, Callable[[], float]] = {
        "similarity": lambda: weights(costs, 0) + _states(costs),
        "pruning": lambda: _heap(costs, _pruning(costs, n)),
        "selection": lambda: _heap(costs, _pruning(costs, n)),
        "distillation": lambda: _heap(costs, _generation(costs, 0, **_rewriting(costs, data_set))),
        "finetuning": lambda: _finetuning(costs, n, data_set),
        "merging": lambda: _merging(costs, n),
        "embedding_similarity": lambda: _generation(costs, n, **_answering(costs)) + ENCODER,
        "speculative_decoding": lambda: _heap(costs, _drafting(costs)),
        "quantization": lambda: _heap(costs, max(scoring(costs, 0), _fidelity(costs, 0)) + weights(costs, 0)),
    }
    return costs.machine.process_bytes + by_step[job.step]() if job.step in by_step else NO_MODEL


def _heap(costs: CostModel, used: float) -> float:
    return used * (HEAP if costs.machine.device == "cpu" else 1)


def weights(costs: CostModel, n: int) -> float:
    """Bytes of the weights of the model without n layers."""
    return costs.shapes[n].parameters * costs.machine.weight_bytes


def _packed(costs: CostModel, n: int) -> float:
    """Bytes of the copies of linear maps that oneDNN reads, see `engine.packed_linear`."""
    packs = costs.machine.device == "cpu" and weights(costs, n) <= MOST_BYTES
    return costs.shapes[n].matmul * costs.machine.weight_bytes if packs else 0


def _cache(costs: CostModel, n: int, tokens: float) -> float:
    """Bytes of the keys and values of so many tokens."""
    return tokens * costs.shapes[n].kv_width * costs.machine.weight_bytes


def _states(costs: CostModel) -> float:
    """Bytes of one layer's work on a batch of calibration rows, in the weights' precision."""
    lengths = [set_lengths(name) for name in costs.study.calibration_sets]
    row = min(costs.study.max_length, LONG_BATCH * max(length["prompt"] + length["response"] for length in lengths))
    share = costs.machine.weight_bytes / costs.machine.dtype_bytes
    return share * layer_bytes(costs, 0, costs.study.calibration_batch * row)


def scoring(costs: CostModel, n: int) -> float:
    """Bytes of a model and of the task that needs most: keys and values, logits, one layer's work.

    Where layers attend to everything before, choices are scored behind a context that was read without its logits;
    the choices are taken for half of a document without examples, and so is an answer that is scored whole.
    """
    most, shape = 0.0, costs.shapes[n]
    for task in costs.study.tasks:
        length, longest = task_lengths(task), longest_of(costs.study, task)
        at_once = min(costs.study.evaluation_batch, documents_of(costs.study, task))
        new, scored = length.get("decode", 0), longest
        if length["kind"] == "generate":
            scored = 1
        elif costs.attends_to_all:
            scored = (longest if length["kind"] == "text" else length["read"]) / 2
        logits = at_once * scored * shape.vocabulary * 2 * costs.machine.weight_bytes  # and their logarithms
        cached = _cache(costs, n, at_once * (longest + new))
        most = max(most, cached + logits + layer_bytes(costs, n, at_once * longest))
    return weights(costs, n) + _packed(costs, n) + most


def _fidelity(costs: CostModel, n: int) -> float:
    """Bytes of the original, a model and what one answer takes: two distributions, and as much for the arithmetic."""
    logits = 4 * costs.study.answer_tokens * costs.shapes[n].vocabulary * 4
    return sum(weights(costs, m) + _packed(costs, m) for m in (0, n)) + logits


def _generation(costs: CostModel, n: int, *, rows: int, tokens: float) -> float:
    """Bytes of a model that continues rows of so many tokens, and of the draw of their next ones."""
    at_once = min(rows, costs.machine.sequences or costs.study.generation_batch)
    drawn = at_once * costs.shapes[n].vocabulary * 10  # logits in two precisions and what is sorted of them
    return weights(costs, n) + _packed(costs, n) + _cache(costs, n, at_once * tokens) + drawn


def _rewriting(costs: CostModel, data_set: str) -> dict:
    """Of the first attempt, which has all rows: every other has fewer, and a model of its own."""
    rows = costs.study.data_sets[data_set] or set_lengths(data_set)["rows"]
    return {"rows": rows, "tokens": set_lengths(data_set)["rewrite_prompt"] + costs.study.rewrite_tokens}


def _answering(costs: CostModel) -> dict:
    longest = max(set_lengths(name)["prompt"] for name in costs.study.data_sets)
    return {"rows": 2 * costs.study.answer_prompts, "tokens": longest + costs.study.answer_tokens}


def _pruning(costs: CostModel, n: int) -> float:
    """Bytes of the model that was cut, which stays while the checkpoint is scored."""
    answered = 0 if n else _generation(costs, 0, **_answering(costs))
    return max(weights(costs, n) + max(scoring(costs, n), answered), _fidelity(costs, n))


def _finetuning(costs: CostModel, n: int, data_set: str) -> float:
    """Bytes of training, or of comparing with the original in the gaps that scoring has left."""
    length = set_lengths(data_set)
    response = max(length["response"], rewritten(costs.study, data_set))
    row = min(costs.study.max_length, LONG_BATCH * (length["prompt"] + response))
    trained, scored, compared = _training(costs, n, row=row), scoring(costs, n), _fidelity(costs, n)
    trained += _divergence(costs, n, data_set)
    if costs.machine.device != "cpu":
        return max(trained, scored, compared)
    model = weights(costs, n) + _packed(costs, n)  # loaded whole: what work on it frees leaves the gaps
    return max(trained, model + _heap(costs, scored - model) + compared)


def _divergence(costs: CostModel, n: int, data_set: str) -> float:
    """Bytes that a loss other than cross-entropy takes on top: copies of the logits, and the original beside."""
    losses = {loss_of(arm) for arm in costs.study.arms}
    tokens = _at_once(costs, LONG_BATCH * set_lengths(data_set)["response"])
    logits = tokens * costs.shapes[n].vocabulary * 4
    original = weights(costs, 0) + _packed(costs, 0) + _packed(costs, n)
    return (original + 2 * logits) * (REVERSE_KL in losses) or logits * (FORWARD_KL in losses)


def _drafting(costs: CostModel) -> float:
    """Bytes of the original and a draft in float32, or of all answers' logits and a model."""
    study, n = costs.study, costs.study.finetune_block_sizes[0]
    tokens = len(study.data_sets) * study.answer_prompts * study.answer_tokens
    logits = tokens * costs.shapes[0].vocabulary * costs.machine.weight_bytes
    precise = replace(costs, machine=SimpleNamespace(**vars(costs.machine) | {"weight_bytes": 4}))
    decoding = sum(weights(precise, m) + _packed(precise, m) for m in (0, n))
    return max(decoding, logits + weights(costs, 0) + _packed(costs, 0))


def _merging(costs: CostModel, n: int) -> float:
    """Bytes of a parent in float32 beside what is read back of it, then of scoring what is between two of them.

    That is an adapter beside the pruned model; a SLERP of whole weights that is not LERP, which fine-tunes of one model
    hardly have, is scored in float32 and takes more.
    """
    precise = replace(costs, machine=SimpleNamespace(**vars(costs.machine) | {"weight_bytes": 4}))
    mixed = _training(costs, n) if costs.study.train_on_mixture else 0
    return _heap(costs, max(2 * weights(precise, n), scoring(costs, n), mixed))


def _at_once(costs: CostModel, row: float) -> float:
    """Tokens of an optimiser step that are read in one pass, of rows of so many; on a GPU all."""
    tokens = costs.study.batch_size * row
    return min(tokens, max(TOKENS_AT_ONCE, row)) if costs.machine.device == "cpu" else tokens


def _training(costs: CostModel, n: int, *, row: float = 0) -> float:
    return sum(size for what, _, size in training(costs, n, row=row) if what != "process")


def training(costs: CostModel, n: int, *, row: float = 0) -> list[tuple[str, str, float]]:
    """(what, arithmetic, bytes) of fine-tuning on rows of `row` tokens.

    Args:
        row: by default the study's `max_length`.
    """
    shape, width = costs.shapes[n], costs.machine.dtype_bytes
    tokens = round(_at_once(costs, row or costs.study.max_length))
    layer = f"{tokens:,} tokens x 1.5 x {shape.layer_width:,.0f} values x {width} bytes"
    kept = f"{shape.layers} layers x {layer}", shape.layers * layer_bytes(costs, n, tokens)
    if costs.machine.checkpointing:
        kept = (
            f"{shape.layers} layers x {tokens:,} tokens x {shape.hidden:,} inputs x {width} bytes",
            shape.layers * tokens * shape.hidden * width,
        )
    how = f"{shape.parameters:,} parameters x {costs.machine.weight_bytes} bytes"
    return [
        ("weights", how, weights(costs, n)),
        ("LoRA, gradients, Adam", f"{shape.adapter:,} parameters x (4 + 4 + 8) bytes", shape.adapter * 16),
        ("kept for backward", *kept),
        ("one layer at work", layer, layer_bytes(costs, n, tokens)),
        _head(costs, n, tokens),
        ("process", f"stated for {costs.machine.name}", costs.machine.process_bytes),
    ]


def _head(costs: CostModel, n: int, tokens: int) -> tuple[str, str, float]:
    """Logits of the loss: on a CPU of all tokens with loss at once, in the weights' precision and thrice in float32."""
    shape, width = costs.shapes[n], costs.machine.weight_bytes
    if costs.machine.device == "cpu":
        lengths = [set_lengths(name) for name in costs.study.data_sets]
        share = max(length["response"] / (length["prompt"] + length["response"]) for length in lengths)
        with_loss = round(tokens * share)
        how = f"{with_loss:,} x {shape.vocabulary:,} logits x ({width} + 4 + 4 + {width}) bytes"
        return "LM head", how, with_loss * shape.vocabulary * (2 * width + 8)
    rows, words = min(tokens, HEAD_TILE[0]), min(shape.vocabulary, HEAD_TILE[1])
    how = f"2 x {rows:,} x {words:,} logits x {width} bytes + {tokens:,} tokens x {shape.hidden:,} x 4 bytes"
    return "LM head, in tiles", how, 2 * rows * words * width + tokens * shape.hidden * 4
