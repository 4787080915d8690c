"""Continuous decoding with transformers models: a finished row leaves the batch, the next prompt takes its place.

Keys and values lie in slots that are allocated once. A row's tokens are at positions 0, 1, … of its slot, so no row
is padded, and tokens that all prompts begin with are read once. Prompts are read ahead in groups of like length, all
but their last token, which is the row's first input in the joint steps. On CPUs a step reads a row's newest token and
its draft; the rows' tokens lie end to end, so a row without a draft multiplies one token only.

Every row has its own seed, so its text does not depend on the rows beside it, except for ties within rounding. In
bfloat16 these are many, as products round by their shape: `generation` decodes the same groups after a kill.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from os.path import commonprefix

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from sdd_utils.engine import attention, packed_linear, probe
from sdd_utils.engine.kv_slots import SlotCache
from sdd_utils.engine.prompt_lookup import DRAFT, Row, confirmed

# (logits (rows, vocabulary), the rows' ids, the number of each row's next token from 0) -> (rows,) tokens
Draw = Callable[[Tensor, list[str], list[int]], Tensor]


def row_seed(id_: str, seed: int) -> int:
    """A seed that depends on the study's seed and on the row, not on the rows beside it or on what ran before."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{id_}".encode()).digest()[:4], "big")


def _likeliest(logits: Tensor, ids: list[str], steps: list[int]) -> Tensor:
    return logits.max(dim=-1).indices  # of equals the first; in bfloat16 on CPUs a fifth of the time of `argmax`


GREEDY: Draw = _likeliest
# Tokens that all slots together hold at most: one long prompt sizes every slot. SmolLM2-135M in float32 needs 4.5 GB
# for as many, Llama-3.1-8B in bfloat16 13 GB.
MOST_TOKENS = 96 * 1024
# Tokens times tokens before them, of which a prompt's pass holds a mask: longer prompts are read in pieces.
MOST_SCORES = 4096**2
# Prompts are read together up to so many tokens, from which on products run at full speed, and at most so many.
READ_TOKENS, READ_ROWS = 512, 8


def sampler(
    *, temperature: float, top_p: float, top_k: int, seed: int, max_new_tokens: int, greedy: Collection[str] = ()
) -> Draw:
    """How the next tokens are chosen: the likeliest ones (temperature 0), or a draw from transformers' distribution.

    Temperature, then top-k, then top-p, as in `generate`; of tokens that tie for the k-th place only some stay.
    A row's draws are uniform numbers from a generator of its own, looked up in the cumulative distribution.

    Args:
        greedy: ids of rows that take the likeliest token at any temperature.
    """
    if temperature == 0:
        return GREEDY
    warp = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    warp += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    certain = frozenset(greedy)

    @functools.cache
    def uniform(id_: str) -> list[float]:
        generator = torch.Generator().manual_seed(row_seed(id_, seed))
        return torch.rand(max_new_tokens, generator=generator, dtype=torch.float64).tolist()

    def draw(logits: Tensor, ids: list[str], steps: list[int]) -> Tensor:
        scores, tokens = logits.float(), None
        if 0 < top_k < scores.shape[-1]:  # a sort of the whole vocabulary, as top-p needs it, would cost half a step
            scores, tokens = scores.topk(top_k)
        cumulative = warp(None, scores).softmax(dim=-1).double().cumsum(dim=-1)
        levels = torch.tensor([uniform(id_)[step] for id_, step in zip(ids, steps, strict=True)], dtype=torch.float64)
        chosen = torch.searchsorted(cumulative, levels.to(cumulative.device)[:, None] * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        chosen = (chosen if tokens is None else tokens.gather(1, chosen))[:, 0]
        if certain.isdisjoint(ids):
            return chosen
        likeliest = torch.tensor([id_ in certain for id_ in ids], device=chosen.device)
        return torch.where(likeliest, GREEDY(logits, ids, steps), chosen)

    return draw


def may_decode(model) -> bool:
    """Whether a configuration rules nothing out: full attention in every layer, masks and positions as given."""
    kind = getattr(model.config, "_attn_implementation", None)
    plain = kind in ("sdpa", "eager") and not getattr(model.config, "alibi", False)
    return probe.takes_positions(model) and plain and attention.attends_to_all(model)


def supports(model) -> bool:
    """Whether `decode` serves a model: its configuration allows it, and what it does on short rows is exact."""
    pairs = functools.partial(_forced, model, decode)
    return may_decode(model) and probe.agrees(model, "joint decoding", pairs, instead="transformers generates")


def engine_for(model, *, batch_size: int) -> tuple[Callable, int]:
    """What generates with a model, and how many rows at once: one, where padded rows are not generated exactly.

    Raises:
        ValueError: not even one row is, as where a cache of transformers does not give what plain passes give.
    """
    if supports(model):
        return decode, batch_size
    padded, alone = (functools.partial(_forced, model, generate_batches, batch_size=rows) for rows in (2, 1))
    exact = probe.agrees(model, "generating padded rows", padded, instead="rows are generated one by one")
    if exact and probe.reads_padding(model):
        return generate_batches, batch_size
    if not (exact or probe.agrees(model, "generating with a cache", alone, instead="it is refused")):
        raise ValueError(f"{type(model).__name__} cannot generate: with a cache it computes other logits than without")
    return generate_batches, 1


def _forced(model, engine: Callable, *, batch_size: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of an engine that is made to choose given tokens, and those of plain passes over them.

    Two rows of unlike length with an opening in common. The longer one says its text twice, so that drafts are read.
    """
    opening, first, text, new = probe.random_rows(model, (4, 2, 11, 3))
    rows = [opening + first, opening + text + text[:6]]
    following = {"0": new, "1": [text[6], *new[:2]]}  # of the draft, text[6:8], one token is right
    prompts, seen = {str(i): row for i, row in enumerate(rows)}, {}

    def draw(logits: Tensor, ids: list[str], steps: list[int]) -> Tensor:
        seen.update(zip(zip(ids, steps, strict=True), logits.clone(), strict=True))
        return torch.tensor([following[id_][step] for id_, step in zip(ids, steps, strict=True)], device=logits.device)

    unused = next(token for token in range(len(new) + 3) if token not in [*new, text[6]])
    for _ in engine(model, prompts, batch_size=batch_size, max_new_tokens=len(new), ends=[unused], draw=draw):
        pass
    for id_, row in prompts.items():
        found = torch.stack([seen[id_, step] for step in range(len(new))])
        yield found, probe.plain_logits(model, row + following[id_][:-1])[len(row) - 1 :]


@torch.inference_mode()
def decode(
    model,
    prompts: dict[str, list[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    ends: list[int],
    draw: Draw,
    stop: Callable[[str, list[int]], bool] = lambda *_: False,
) -> Iterator[tuple[str, list[int]]]:
    """Continue every prompt, at most `batch_size` at once (fewer where prompts are very long), the longest first.

    Args:
        prompts: token ids by row id, at least one each.
        ends: the tokens that end a row.
        stop: further ends, by id and the tokens so far.

    Yields:
        (id, new tokens with the end token, if any), in the order in which rows finish.
    """
    if prompts:
        with packed_linear.packed_linears(model), attention.by_blocks(model):
            yield from _decode(model, prompts, batch_size, max_new_tokens, ends, draw, stop)


def _decode(model, prompts: dict, batch_size: int, max_new_tokens: int, ends: list, draw: Draw, stop: Callable):
    waiting = deque(sorted(prompts, key=lambda id_: (-len(prompts[id_]), id_)))
    shared = commonprefix([prompt[:-1] for prompt in prompts.values()])
    capacity = len(prompts[waiting[0]]) + max_new_tokens
    slots = max(1, min(batch_size + READ_ROWS - 1, len(prompts), MOST_TOKENS // capacity))
    cache = SlotCache(model, slots=slots, capacity=capacity)
    _read(model, cache, [shared], first=0, start=0)
    cache.copy(0, slice(1, None), length=len(shared))
    draft = DRAFT if _reads_end_to_end(model) else 0
    rows: list[Row] = []  # the row of each slot; those from `batch_size` on are read ahead
    while waiting or rows:
        while waiting and len(rows) < min(batch_size, slots):
            group = _group(waiting, prompts, free_slots=slots - len(rows), shared=len(shared))
            _read(model, cache, [row.tokens[len(shared) : -1] for row in group], first=len(rows), start=len(shared))
            rows += group
        active = rows[:batch_size]
        drafts = [row.draft(min(draft, max_new_tokens - row.n_new - 1)) for row in active]
        chosen = _choose(model, cache, active, drafts, draw)
        for slot in reversed(range(len(active))):  # from behind, so that the row that fills a gap has had its tokens
            if _goes_on(row := active[slot], chosen[slot], max_new_tokens, ends, stop):
                continue
            yield row.id, row.new_tokens
            last = rows.pop()
            if last is not row:
                rows[slot] = last
                cache.copy(len(rows), slice(slot, slot + 1), length=len(last.tokens))


def _choose(model, cache: SlotCache, active: list[Row], drafts: list[list[int]], draw: Draw) -> list[list[int]]:
    """One step: the next tokens of every row, one more than those of its draft that were right."""
    inputs = [[row.tokens[-1], *draft] for row, draft in zip(active, drafts, strict=True)]
    logits = _step(model, cache, inputs, [len(row.tokens) - 1 for row in active])
    places = [(row, number) for row, ids in zip(active, inputs, strict=True) for number in range(len(ids))]
    steps = [row.n_new + number for row, number in places]
    tokens = iter(draw(logits, [row.id for row, _ in places], steps).tolist())
    return [confirmed(draft, tokens) for draft in drafts]


def _goes_on(row: Row, tokens: list[int], max_new_tokens: int, ends: list[int], stop: Callable) -> bool:
    """Extend a row by the tokens up to the one that ends it, if any; whether none does."""
    for token in tokens:
        row.append(token)
        if token in ends or row.n_new == max_new_tokens or stop(row.id, row.new_tokens):
            return False
    return True


def _group(waiting: deque[str], prompts: dict[str, list[int]], *, free_slots: int, shared: int) -> list[Row]:
    """Take the next prompts that are read together, at most `free_slots` of them; the first is the longest."""
    longest = len(prompts[waiting[0]]) - shared
    count = min(len(waiting), free_slots, READ_ROWS, max(1, READ_TOKENS // longest))
    return [Row(id_, len(prompts[id_]), [*prompts[id_]]) for id_ in (waiting.popleft() for _ in range(count))]


def _read(model, cache: SlotCache, rows: list[list[int]], *, first: int, start: int) -> None:
    """Read rows of tokens into the slots from `first` on, from the position `start` on.

    Shorter rows are filled up behind their end, where their new tokens will overwrite what that leaves.
    """
    width = max(map(len, rows))
    positions = torch.arange(start, start + width, device=model.device).expand(len(rows), -1)
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    piece = max(1, MOST_SCORES // (len(rows) * (start + width) or 1))
    for begin in range(0, width, piece):
        part = slice(begin, begin + piece)
        model.base_model(**cache.arguments(positions[:, part], first=first), input_ids=inputs[:, part])


def _reads_end_to_end(model) -> bool:
    """Whether a joint step may read several tokens of a row: elsewhere it is one each, and no draft."""
    return model.config._attn_implementation == attention.BY_BLOCKS


def _step(model, cache: SlotCache, inputs: list[list[int]], starts: list[int]) -> Tensor:
    """(tokens, vocabulary) logits after the next tokens of the first slots, which lie end to end."""
    ids = torch.tensor([token for row in inputs for token in row], device=model.device)
    if _reads_end_to_end(model):
        return model(**cache.ragged(starts, [*map(len, inputs)]), input_ids=ids[None]).logits[0]
    positions = torch.tensor(starts, device=model.device)[:, None]
    return model(**cache.arguments(positions, first=0), input_ids=ids[:, None]).logits[:, 0]


@torch.inference_mode()
def generate_batches(
    model, prompts: dict[str, list[int]], *, batch_size: int, max_new_tokens: int, ends: list[int], draw: Draw
) -> Iterator[tuple[str, list[int]]]:
    """`decode` for any model: transformers' `generate` on left-padded batches of like length, with the same draws."""
    ordered = sorted(prompts, key=lambda id_: (-len(prompts[id_]), id_))
    settings = {"max_new_tokens": max_new_tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
    # What is not set here, `generate` takes from the model's own settings: nothing of those may change the scores.
    config = GenerationConfig(do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, **settings)
    while ordered:
        width = len(prompts[ordered[0]])
        count = max(1, min(batch_size, MOST_TOKENS // (width + max_new_tokens)))
        ids, ordered = ordered[:count], ordered[count:]
        rows = torch.tensor([[ends[0]] * (width - len(prompts[id_])) + prompts[id_] for id_ in ids])
        mask = torch.tensor([[0] * (width - len(prompts[id_])) + [1] * len(prompts[id_]) for id_ in ids])

        def drawn(sequences: Tensor, scores: Tensor, ids=ids, width=width) -> Tensor:
            tokens = draw(scores, ids, [sequences.shape[1] - width] * len(ids))
            return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

        sequences = model.generate(
            rows.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([drawn]),
        )
        for id_, tokens in zip(ids, sequences[:, width:].tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
            yield id_, tokens[: end + 1]
