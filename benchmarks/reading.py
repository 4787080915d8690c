"""Reading prompts in groups of like length, as decoding does, beside transformers' forward of padded batches.

Our side is decoding that ends with each row's first new token: reading, and one joint step. The peer gives the logits
behind each prompt.
"""

from os.path import commonprefix

import torch

from benchmarks import distillation, roofline, some_rows
from sdd_utils.engine import decoding
from sdd_utils.models import store

NAME = "reading"
FULL = {"rows": 32, "batch_size": 32}
LARGE = {"rows": 16, "batch_size": 16}
SMALL = {"rows": 5, "batch_size": 2}


def prepare(model, *, scratch, rows: int, batch_size: int) -> dict:
    loaded, tokenizer = store.load_model(model)
    return {"model": loaded, "prompts": distillation.prompts(tokenizer, rows), "batch_size": batch_size}


def ours(state) -> dict[str, int]:
    """The likeliest token behind every prompt."""
    settings = {"batch_size": len(state["prompts"]), "max_new_tokens": 1, "ends": [], "draw": decoding.GREEDY}
    return {id_: token for id_, (token,) in decoding.decode(state["model"], state["prompts"], **settings)}


@torch.inference_mode()
def padded(state) -> dict[str, torch.Tensor]:
    """The logits behind every prompt."""
    ids, found = [*state["prompts"]], {}
    for start in range(0, len(ids), state["batch_size"]):
        batch = ids[start : start + state["batch_size"]]
        inputs, mask = distillation.left_padded([state["prompts"][id_] for id_ in batch], fill=0)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        settings = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1, "use_cache": False}
        found |= zip(batch, state["model"](inputs, **settings).logits[:, -1], strict=True)
    return found


PEERS = {"transformers forward, left-padded batches in file order": (padded, 3)}


def least_seconds(model, state, answer) -> float:
    """Of the prompts' products, with an opening that all have in common once, and of the LM head for each."""
    prompts = [*state["prompts"].values()]
    shared = len(commonprefix(prompts))
    tokens = shared + sum(len(prompt) - shared for prompt in prompts)
    flops = roofline.forward_flops(roofline.shape(model), tokens=tokens, predicted=len(prompts))
    return flops / roofline.product_rate(model)


def same(state, ours, peer) -> tuple[bool, str]:
    """Each token is the peer's likeliest, or as likely as rounding can tell."""
    close = all(distillation.as_likely(logits, ours[id_], int(logits.argmax())) for id_, logits in peer.items())
    differ = sum(ours[id_] != int(logits.argmax()) for id_, logits in peer.items())
    tokens = sum(map(len, state["prompts"].values()))
    return close, f"{len(peer)} prompts of {some_rows.NAME}, {tokens} tokens, {differ} first tokens differ"
