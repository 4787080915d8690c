"""Greedy rewrites: the decode loop, beside transformers' `generate` row by row and on padded batches in file order.

The peers take tens of minutes for all rows, so they decode a part, evenly spread over the file, and time is counted
per new token.
"""

import torch

from benchmarks import some_rows
from sdd_utils.engine import decoding
from sdd_utils.models import chat_format, store
from sdd_utils.steps import distillation

NAME = "distillation"
FULL = {"rows": 48, "max_new_tokens": 48, "batch_size": 64, "padded": 24, "every": 16, "every_batch": 2}
LARGE = {"rows": 16, "max_new_tokens": 32, "padded": 16}
MEMORY = {"max_new_tokens": 16}
DTYPE = "float32"  # in bfloat16 many texts part at ties, and their likelihoods with them
SMALL = {"rows": 6, "max_new_tokens": 6, "batch_size": 4, "padded": 3, "every": 2, "every_batch": 2}


def prepare(
    model, *, scratch, rows: int, max_new_tokens: int, batch_size: int, padded: int, every: int, every_batch: int
) -> dict:
    loaded, tokenizer = store.load_model(model)
    asked = prompts(tokenizer, rows)
    ends = chat_format.end_tokens(tokenizer, loaded.generation_config)
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    ids = list(asked)
    batches = [ids[start : start + padded] for start in range(0, rows, padded)][::every_batch]
    parts = {"alone": [[id_] for id_ in ids[::every]], "padded": batches}
    return {"model": loaded, "prompts": asked, "ends": ends, "settings": settings, "parts": parts}


def prompts(tokenizer, rows: int) -> dict[str, list[int]]:
    """Token ids, by row, of the prompts that ask for a rewrite."""
    asked = {row["id"]: distillation.rewrite_messages(row) for row in some_rows.load(rows)}
    texts = {id_: chat_format.render(tokenizer, messages) for id_, messages in asked.items()}
    return {id_: tokenizer(text, add_special_tokens=False)["input_ids"] for id_, text in texts.items()}


def ours(state) -> dict[str, list[int]]:
    """New tokens by row, with the end token."""
    loop = decoding.decode(
        state["model"], state["prompts"], ends=state["ends"], draw=decoding.GREEDY, **state["settings"]
    )
    return dict(loop)


def left_padded(rows: list[list[int]], *, fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest) token ids, and the mask of those that are not there only to fill the row."""
    width = max(map(len, rows))
    inputs = torch.tensor([[fill] * (width - len(row)) + row for row in rows])
    return inputs, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


@torch.inference_mode()
def _generate(state, ids: list[str]) -> dict[str, list[int]]:
    rows, ends = [state["prompts"][id_] for id_ in ids], state["ends"]
    inputs, mask = left_padded(rows, fill=ends[0])
    most = state["settings"]["max_new_tokens"]
    settings = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0], "max_new_tokens": most}
    sequences = state["model"].generate(inputs, attention_mask=mask, **settings)[:, inputs.shape[1] :].tolist()
    stops = [next((i for i, token in enumerate(row) if token in ends), most) for row in sequences]
    return {id_: row[: stop + 1] for id_, row, stop in zip(ids, sequences, stops, strict=True)}


def alone(state) -> dict[str, list[int]]:
    return {id_: tokens for part in state["parts"]["alone"] for id_, tokens in _generate(state, part).items()}


def padded(state) -> dict[str, list[int]]:
    return {id_: tokens for part in state["parts"]["padded"] for id_, tokens in _generate(state, part).items()}


def amount(answer: dict[str, list[int]]) -> int:
    """New tokens."""
    return sum(map(len, answer.values()))


PEERS = {
    "transformers generate, batch 1": (alone, 1),
    "transformers generate, left-padded batches in file order": (padded, 1),
}


@torch.inference_mode()
def _likelihood(state, id_: str, tokens: list[int]) -> float:
    """Log-likelihood of a row's new tokens, the row read alone by plain transformers."""
    ids = torch.tensor([state["prompts"][id_] + tokens])
    logits = state["model"](ids, logits_to_keep=len(tokens) + 1).logits[0, :-1]
    return float(logits.log_softmax(dim=-1).gather(1, ids[0, -len(tokens) :, None]).sum())


def _mean_likelihoods(state, *answers: dict[str, list[int]]) -> list[float]:
    """Per new token, by answer; a text that several answers share is read once."""
    texts = {(id_, tuple(tokens)) for answer in answers for id_, tokens in answer.items()}
    by_text = {(id_, tokens): _likelihood(state, id_, list(tokens)) for id_, tokens in texts}
    sums = (sum(by_text[id_, tuple(tokens)] for id_, tokens in answer.items()) for answer in answers)
    return [total / sum(map(len, answer.values())) for total, answer in zip(sums, answers, strict=True)]


@torch.inference_mode()
def tie(state, id_: str, a: list[int], b: list[int]) -> bool:
    """Whether two texts part where the model finds two tokens as likely as rounding can tell."""
    at = next((i for i, pair in enumerate(zip(a, b, strict=False)) if len(set(pair)) == 2), None)
    if at is None:
        return False  # one goes on where the other ends
    read = torch.tensor([state["prompts"][id_] + a[:at]])
    logits = state["model"](read, logits_to_keep=1).logits[0, -1]
    return as_likely(logits, a[at], b[at])


def as_likely(logits: torch.Tensor, token: int, other: int) -> bool:
    """Whether rounding decides between two tokens."""
    rounding = 1e-2 if logits.dtype == torch.float32 else 0.5
    return bool((logits[token] - logits[other]).abs() < rounding)


def same(state, ours, peer) -> tuple[bool, str]:
    """Mean log-likelihoods within 0.5 %; texts may differ only from a tie of two tokens on."""
    found, expected = _mean_likelihoods(state, {id_: ours[id_] for id_ in peer}, peer)
    differ = [id_ for id_ in peer if ours[id_] != peer[id_]]
    close = ours.keys() == state["prompts"].keys() and abs(found / expected - 1) < 0.005
    close = close and all(tie(state, id_, ours[id_], peer[id_]) for id_ in differ)
    rows = f"{len(ours)} rows of {some_rows.NAME} ({len(peer)} by the peer, time per new token)"
    most = f"{state['settings']['max_new_tokens']} new tokens at most"
    return close, f"{rows}, {most}, {len(differ)} texts differ, log-likelihood {found / expected - 1:+.2%}"
