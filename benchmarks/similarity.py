"""Similarity of five block sizes: one pass, beside one full pass per block size, and beside a bare decoder pass."""

import numpy as np
import torch

from benchmarks import roofline
from sdd_utils.data.rows import calibration_set, text_of
from sdd_utils.models import store
from sdd_utils.steps import similarity

NAME = "similarity, 5 block sizes"
FULL = {"texts": 8, "batch_size": 8, "block_sizes": [2, 4, 6, 8, 10]}
LARGE = {"texts": 4, "batch_size": 4}
SMALL = {"texts": 4, "batch_size": 3, "block_sizes": [1, 2, 3]}


def prepare(model, *, scratch, texts: int, batch_size: int, block_sizes: list[int]) -> dict:
    loaded, tokenizer = store.load_model(model)
    rows = calibration_set(["gsm_symbolic", "pydoc"], rows=texts)
    settings = {"batch_size": batch_size, "max_length": 512}
    texts = [text_of(row) for row in rows]
    return {"model": loaded, "tokenizer": tokenizer, "texts": texts, "blocks": block_sizes, "settings": settings}


def ours(state) -> dict[int, np.ndarray]:
    """d(l, n) by block size n, for every start l."""
    found = similarity.measure_similarity(state["model"], state["tokenizer"], state["texts"], **state["settings"])
    return {n: similarity.block_distances(found.map, n) for n in state["blocks"]}


def _batches(state):
    size, texts = state["settings"]["batch_size"], state["texts"]
    for start in range(0, len(texts), size):
        batch = state["tokenizer"](texts[start : start + size], padding=True, return_tensors="pt")
        yield batch | {"position_ids": (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


@torch.inference_mode()
def full_passes(state) -> dict[int, np.ndarray]:
    """As the public tool does it: all hidden states and the logits, again for every block size."""
    found = {}
    for n in state["blocks"]:
        rows = []
        for batch in _batches(state):
            states = state["model"](**batch, output_hidden_states=True).hidden_states
            last = batch["attention_mask"].shape[1] - 1  # left-padded
            pairs = zip(states, states[n:], strict=False)
            cosines = [torch.cosine_similarity(a[:, last].float(), b[:, last].float()) for a, b in pairs]
            rows.append(torch.arccos(torch.stack(cosines, dim=1).clamp(-1, 1)) / torch.pi)
        found[n] = torch.cat(rows).mean(dim=0).numpy()
    return found


@torch.inference_mode()
def bare_pass(state) -> None:
    for batch in _batches(state):
        state["model"].base_model(**batch, use_cache=False)


PEERS = {
    "a full forward per block size, all hidden states and logits": (full_passes, 2),
    "one bare forward of the decoder (the limit)": (bare_pass, 5),
}


def least_seconds(model, state, answer) -> float:
    """Of the bare decoder's products."""
    tokens = sum(int(batch["attention_mask"].sum()) for batch in _batches(state))
    return roofline.forward_flops(roofline.shape(model), tokens=tokens, predicted=0) / roofline.product_rate(model)


def same(state, ours, peer) -> tuple[bool | None, str]:
    if peer is None:
        return None, ""
    # The last distance is left out: transformers' last hidden state has been through the final norm.
    gap = max(float(np.abs(ours[n][:-1] - peer[n][:-1]).max()) for n in ours)
    return gap < 1e-4, f"largest difference of a distance {gap:.0e}"
