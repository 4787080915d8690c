"""How long a pass of a model takes when it decodes alone, at batch size 1."""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

CONTEXT, WARM_UP, ROUNDS = 64, 4, 40  # tokens before the first pass, passes that do not count, passes that do


@torch.inference_mode()
def pass_seconds(timed: dict[str, tuple]) -> dict[str, float]:
    """Median seconds of a pass over so many tokens that follow the ones before.

    The passes take turns, so that other work on the machine slows them alike.

    Args:
        timed: by name (loaded model, tokens).
    """
    turns = zip(*(_passes(*which) for which in timed.values()), strict=True)
    seconds = np.median([*islice(turns, WARM_UP, WARM_UP + ROUNDS)], axis=0)
    return dict(zip(timed, seconds.tolist(), strict=True))


def _passes(model, tokens: int) -> Iterator[float]:
    """Seconds of one pass after another, each with the keys and values of those before."""
    ids = torch.zeros((1, CONTEXT + tokens), dtype=torch.long, device=model.device)
    cache = model(input_ids=ids[:, :CONTEXT], use_cache=True, logits_to_keep=1).past_key_values
    while True:
        began = time.perf_counter()
        cache = model(input_ids=ids[:, CONTEXT:], past_key_values=cache, use_cache=True).past_key_values
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - began
