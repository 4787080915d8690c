"""The decode loop beside one-row `generate`, and keys and values in slots beside plain passes."""

import torch
from gpu.measure import Setup, computing_in, entry, equality, products, timed

from benchmarks.distillation import as_likely, prompts
from sdd_utils.engine import decoding, probe
from sdd_utils.engine.kv_slots import SlotCache
from sdd_utils.models import architecture, chat_format, store


def decode(setup: Setup) -> list[dict]:
    """Rewrites in bfloat16 for speed, and in float32 beside transformers' `generate` of each row alone."""
    size = setup.size
    with computing_in("bfloat16"):
        model, tokenizer = store.load_model(setup.model)
        asked, ends = prompts(tokenizer, size["rows"]), chat_format.end_tokens(tokenizer, model.generation_config)
        settings = {"max_new_tokens": size["new_tokens"], "ends": ends, "draw": decoding.GREEDY}
        served = decoding.supports(model)
        decode_all = lambda: dict(decoding.decode(model, asked, batch_size=size["batch"], **settings))  # noqa: E731
        texts, seconds = timed(decode_all, turns=size["turns"])
    new, read = (sum(map(len, rows.values())) for rows in (texts, asked))
    work = f"{len(asked)} prompts of {read} tokens, {size['batch']} at once, {new} new tokens"
    flops = products(model.config, read=read + new, predicted=new)
    made = entry("decoding", rate=setup.rate, tokens=new, flops=flops, seconds=seconds, work=work)
    made["served"] = {"joint decoding": served}
    with computing_in("float32"):
        model, _ = store.load_model(setup.model)
        few = dict(list(asked.items())[: size["exact_rows"]])
        exact = settings | {"max_new_tokens": size["exact_tokens"]}
        found = dict(decoding.decode(model, few, batch_size=size["exact_rows"], **exact))
        alone = {id_: generated_alone(model, few[id_], ends=ends, most=size["exact_tokens"]) for id_ in few}
        unlike = [id_ for id_ in few if found[id_] != alone[id_]]
        wrong = [id_ for id_ in unlike if not tie(model, few[id_], found[id_], alone[id_])]
    made["ties"] = len(unlike) - len(wrong)
    name = f"{len(few)} texts of batched decoding and of one-row generate"
    made["equalities"] = [equality(name, len(wrong), allowed=0, unit="texts that differ")]
    return [made]


@torch.inference_mode()
def generated_alone(model, prompt: list[int], *, ends: list[int], most: int) -> list[int]:
    """Greedy new tokens of one row by transformers, with the end token."""
    ids = torch.tensor([prompt], device=model.device)
    settings = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0], "max_new_tokens": most}
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: end + 1]


@torch.inference_mode()
def tie(model, prompt: list[int], text: list[int], other: list[int]) -> bool:
    """Whether two texts part where the model finds two tokens as likely as rounding can tell."""
    at = next((i for i, pair in enumerate(zip(text, other, strict=False)) if len(set(pair)) == 2), None)
    if at is None:
        return False  # one goes on where the other ends
    logits = probe.plain_logits(model, prompt + text[:at])[-1]
    return as_likely(logits, text[at], other[at])


def slots(setup: Setup) -> list[dict]:
    """Joint steps of many slots in bfloat16 for speed; logits behind copied slots beside plain passes."""
    size = setup.size
    with computing_in("bfloat16"):
        model, _ = store.load_model(setup.model)
        cache, seconds = step_seconds(model, **size["slots"], turns=size["turns"])
        coarse = slot_difference(model, size["slot_rows"])
        with torch.inference_mode():  # as `probe` judges: what the model itself rounds on this card may be more
            allowed = max(probe.COARSE, min(probe.MOST, 4 * probe._rounding(model)))
    with computing_in("float32"):
        fine = slot_difference(store.load_model(setup.model)[0], size["slot_rows"])
    count, steps = size["slots"]["slots"], size["slots"]["steps"]
    tokens = count * steps
    flops = products(model.config, read=tokens, predicted=tokens)
    work = f"{steps} joint steps of {count} slots, {size['slots']['context']} tokens before them"
    made = entry("KV slots", rate=setup.rate, tokens=tokens, flops=flops, seconds=seconds, work=work)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    width = architecture.shape_of(model.config, block_size=0, rank=1, targets="all-linear").kv_width
    planned = count * cache.capacity * width * model.dtype.itemsize
    name = "logits behind copied slots and of plain passes"
    made["equalities"] = [
        equality(f"{name}, float32", fine, allowed=probe.TOLERANCE[torch.float32], unit="of their spread"),
        equality(f"{name}, bfloat16", coarse, allowed=allowed, unit="of their spread"),
        equality("bytes of the slots and of the plan", abs(held - planned), allowed=0, unit="bytes"),
    ]
    made["slots_mb"] = round(held / 2**20)
    return [made]


@torch.inference_mode()
def step_seconds(model, *, slots: int, context: int, steps: int, turns: int) -> tuple[SlotCache, list[float]]:
    """The slots, and the seconds of `steps` joint steps behind `context` tokens in each."""
    cache = SlotCache(model, slots=slots, capacity=context + steps)
    (row,) = probe.random_rows(model, (context,))
    decoding._read(model, cache, [row], first=0, start=0)
    cache.copy(0, slice(1, None), length=context)

    def advance() -> None:
        for step in range(steps):
            decoding._step(model, cache, [[row[0]]] * slots, [context + step] * slots)

    return cache, timed(advance, turns=turns)[1]


@torch.inference_mode()
def slot_difference(model, lengths: tuple[int, ...]) -> float:
    """How far the logits of each row's last two tokens differ, see `probe.difference`.

    Rows are read into the first slots, but for these tokens, and copied into others, whose neighbours then change.
    """
    rows, count = probe.random_rows(model, lengths), len(lengths)
    cache = SlotCache(model, slots=2 * count, capacity=max(lengths))
    decoding._read(model, cache, [row[:-2] for row in rows], first=0, start=0)
    for slot, row in enumerate(rows):
        cache.copy(slot, slice(count + slot, count + slot + 1), length=len(row) - 2)
    decoding._read(model, cache, [row[::-1] for row in rows], first=0, start=0)
    places = torch.tensor([[len(row) - 2, len(row) - 1] for row in rows], device=model.device)
    ids = torch.tensor([row[-2:] for row in rows], device=model.device)
    found = model(**cache.arguments(places, first=count), input_ids=ids).logits
    return max(probe.difference(one, probe.plain_logits(model, row)[-2:]) for one, row in zip(found, rows, strict=True))
