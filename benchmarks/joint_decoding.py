"""Joint steps of decoding alone, without drafts: many rows' next tokens, beside the reading of as many bytes."""

from contextlib import ExitStack

import torch

from benchmarks import distillation, roofline, some_rows
from sdd_utils.engine import attention, decoding, packed_linear
from sdd_utils.engine.kv_slots import SlotCache
from sdd_utils.models import store

NAME = "joint decoding"
FULL = {"rows": 64, "steps": 16}
LARGE = {"rows": 40}
SMALL = {"rows": 5, "steps": 2}


def prepare(model, *, scratch, rows: int, steps: int) -> dict:
    """The prompts' keys and values in slots. Weights are packed here, once, as before a job's thousands of steps."""
    loaded, tokenizer = store.load_model(model)
    prompts, held = [*distillation.prompts(tokenizer, rows).values()], ExitStack()
    held.enter_context(packed_linear.packed_linears(loaded))
    held.enter_context(attention.by_blocks(loaded))
    cache = SlotCache(loaded, slots=rows, capacity=max(map(len, prompts)) + steps)
    with torch.inference_mode():
        for slot, prompt in enumerate(prompts):
            decoding._read(loaded, cache, [prompt[:-1]], first=slot, start=0)
    state = {"model": loaded, "held": held, "cache": cache, "prompts": prompts, "steps": steps}
    return state | {"bytes": torch.ones(sum(_bytes(model, state)) // steps // 4)}


def _bytes(model: str, state) -> list[int]:
    """What each step must read."""
    lengths, width = sum(map(len, state["prompts"])), state["model"].dtype.itemsize
    cached = (lengths + step * len(state["prompts"]) for step in range(state["steps"]))
    return [roofline.step_bytes(roofline.shape(model), cached=tokens, width=width) for tokens in cached]


@torch.inference_mode()
def ours(state) -> list[list[int]]:
    """The rows' likeliest tokens after each step."""
    last, chosen = [prompt[-1:] for prompt in state["prompts"]], []
    for step in range(state["steps"]):
        starts = [len(prompt) - 1 + step for prompt in state["prompts"]]
        tokens = decoding.GREEDY(decoding._step(state["model"], state["cache"], last, starts), [], []).tolist()
        last = [[token] for token in tokens]
        chosen.append(tokens)
    return chosen


def reading(state) -> None:
    for _ in range(state["steps"]):
        state["bytes"].sum()


PEERS = {"reading weights, keys and values once a step (the limit)": (reading, 5)}


def least_seconds(model, state, answer) -> float:
    return sum(_bytes(model, state)) / roofline.read_rate()


def same(state, ours, peer) -> tuple[None, str]:
    rows, tokens = len(state["prompts"]), sum(map(len, state["prompts"]))
    read = state["bytes"].nbytes / 1e9
    return None, f"{state['steps']} steps of {rows} rows of {some_rows.NAME} behind {tokens} tokens, {read:.2f} GB each"
