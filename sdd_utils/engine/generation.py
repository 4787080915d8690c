"""Batched text generation whose result does not depend on where a run stopped.

Every row has its own seed, derived from its id. A row's numbers are rounded by the shape of the products that it
shares with the rows beside it, and in bfloat16 that decides between likely tokens. So transformers generates in fixed
groups, and a rerun of an interrupted job decodes the groups that lack a row from their start.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
import transformers
from tqdm import tqdm

from sdd_utils.base import precision
from sdd_utils.base.files import digest, file_sha256, keep_rows, read_json_lines
from sdd_utils.engine import decoding, vllm_client, vllm_installed
from sdd_utils.models import architecture, store

# Raise it when a change of decoding changes texts: what was generated before then counts as another engine's.
VERSION = 1
GROUP = 4  # batches: a kill costs less than a group, and each group ends with fewer rows than a batch
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRANSFORMERS = f"transformers {transformers.__version__}"


def engine() -> str:
    """What generates here, with its version: vLLM where `make vllm` installed it, else transformers.

    SDD_ENGINE=transformers or vllm overrides it. Texts of two engines agree up to floating-point ties.
    """
    vllm = vllm_installed.engine()
    return f"{vllm['name']} {vllm['version']}" if vllm else TRANSFORMERS


def render(tokenizer, messages: list[dict]) -> str:
    """A conversation in the model's own chat format, ready for the assistant to speak.

    A last message of role `assistant` is a pre-filled opening that the model continues.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: use an instruct model")
    opened = messages[-1]["role"] == "assistant"
    settings = {"tokenize": False, "add_generation_prompt": not opened, "continue_final_message": opened}
    try:
        return tokenizer.apply_chat_template(messages, **settings)
    except jinja2.TemplateError:
        if messages[0]["role"] != "system":
            raise
        return tokenizer.apply_chat_template(_without_system(messages), **settings)


def _without_system(messages: list[dict]) -> list[dict]:
    """The same conversation for a template that knows no system turn: its text opens the user's turn."""
    system, user, *later = messages
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *later]


def generate_texts(
    model,
    tokenizer,
    prompts: dict[str, str],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    greedy: Sequence[str] = (),
) -> Iterator[dict]:
    """Generate one continuation per prompt, yielding each row as it finishes.

    Args:
        prompts: rendered text by id.
        batch_size: rows decoded at once; does not change a row's text beyond ties within rounding.
        temperature: 0 is greedy decoding.
        greedy: ids of rows that are decoded greedily at any temperature.

    Yields:
        {id, text, finish: "stop" | "length" | "too long", n_tokens, seed}, where n_tokens counts the end token. A
        prompt that leaves no room for `max_new_tokens` in the model's context is "too long", and its text is empty.
    """
    encoded, too_long = _fitting(tokenizer, model.config, prompts, max_new_tokens=max_new_tokens)
    yield from (_unwritten(id_, seed) for id_ in too_long)
    ends = end_tokens(model, tokenizer)
    drawing = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed, "greedy": greedy}
    draw = decoding.sampler(max_new_tokens=max_new_tokens, **drawing)
    decode, batch_size = decoding.engine_for(model, batch_size=batch_size)
    rows = decode(model, encoded, batch_size=batch_size, max_new_tokens=max_new_tokens, ends=ends, draw=draw)
    for id_, tokens in tqdm(rows, total=len(encoded), desc="generation", unit="row", disable=None):
        yield {"id": id_, **_finished(tokenizer, tokens, ends), "seed": seed}


def _fitting(tokenizer, config, prompts: dict[str, str], *, max_new_tokens: int) -> tuple[dict, list[str]]:
    """(tokens by id, ids of the prompts that leave no room for so many new tokens), and one line on how many do not."""
    room = architecture.context_length(config) - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens = {max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{room + max_new_tokens} tokens: lower max_new_tokens"
        )
    encoded = {id_: tokenizer(text, add_special_tokens=False)["input_ids"] for id_, text in prompts.items()}
    fitting = {id_: tokens for id_, tokens in encoded.items() if len(tokens) <= room}
    too_long = [id_ for id_ in encoded if id_ not in fitting]
    if too_long:
        told = f"{len(too_long)} of {len(prompts)} prompts are longer than {room:.0f} tokens, the model's context less "
        told += f"max_new_tokens, so they get no text; the first is {too_long[0]!r}"
        tqdm.write(told, file=sys.stderr)
    return fitting, too_long


def _unwritten(id_: str, seed: int) -> dict:
    """The row of a prompt that is too long."""
    return {"id": id_, "text": "", "finish": "too long", "n_tokens": 0, "seed": seed}


def end_tokens(model, tokenizer) -> list[int]:
    """The tokens that end a text: those of the model's generation settings, or else the tokenizer's."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return ends if isinstance(ends, list) else [ends]


def _finished(tokenizer, tokens: list[int], ends: list[int]) -> dict:
    """Text and finish of a row's tokens; one that does not close with an end token was truncated."""
    stopped = tokens[-1] in ends
    text = tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=True)
    return {"text": text, "finish": "stop" if stopped else "length", "n_tokens": len(tokens)}


def generate_file(
    model: str | Path,
    prompts: dict[str, str],
    *,
    path: Path,
    adapter: Path | None = None,
    batch_size: int,
    speculate: bool = False,
    **sampling,
) -> list[dict]:
    """Raw texts from a file of JSON lines that only ever grows; those that it lacks are generated by the engine here.

    Args:
        model: name or folder; loaded only if a text is missing.
        prompts: rendered text by id.
        adapter: a LoRA adapter to merge into the model.
        speculate: texts copy from their prompts: vLLM guesses tokens from there (docs/vllm.md).
        batch_size, sampling: see `generate_texts`.

    Returns:
        rows {id, key, text, finish, n_tokens, seed} in the order of `prompts`; `key` says what a text depends on, see
        `text_keys`. Rows that transformers made have `job` as well, see `_begun`.
    """
    keys = text_keys(model, prompts, adapter=adapter, **sampling)

    def make(missing: list[str]) -> Iterator[dict]:
        missing_prompts, settings = {id_: prompts[id_] for id_ in missing}, {"adapter": adapter, **sampling}
        if engine() == TRANSFORMERS:
            job = {id_: prompts[id_] for id_ in _begun(path, keys, missing, batch_size=batch_size)}
            loaded = store.load_model(model, adapter=adapter)
            return _by_groups(*loaded, job, missing=missing, batch_size=batch_size, **sampling)
        raw = path.with_suffix(f".{digest(keys)}.vllm.jsonl")  # vLLM keeps its own file until all are there
        return _by_vllm(model, missing_prompts, path=raw, speculate=speculate, **settings)

    return keep_rows(path, keys, make=make)


def _begun(path: Path, keys: dict[str, str], missing: list[str], *, batch_size: int) -> list[str]:
    """The ids of the job that was cut off here, whose groups are formed again; else of a new job, which is `missing`.

    The rows that a job makes carry its digest, so it was this one if its rows and the missing ones have it together.
    """
    rows = read_json_lines(path)
    last = rows[-1].get("job") if rows else None
    made = {row["id"] for row in rows if row.get("job") == last and row["key"] == keys.get(row["id"])}
    together = made.union(missing)
    begun = [id_ for id_ in keys if id_ in together]
    return begun if last == digest(begun, GROUP * batch_size) else missing


def _by_groups(model, tokenizer, prompts: dict, *, missing: list[str], batch_size: int, **sampling) -> Iterator[dict]:
    """The missing rows, each from its whole group, so that the same rows are decoded beside it as in its first run."""
    ids, wanted, size = [*prompts], {*missing}, GROUP * batch_size
    job = digest(ids, size)
    for start in range(0, len(ids), size):
        group = ids[start : start + size]
        if not wanted.isdisjoint(group):
            asked = {id_: prompts[id_] for id_ in group}
            rows = generate_texts(model, tokenizer, asked, batch_size=batch_size, **sampling)
            yield from (row | {"job": job} for row in rows if row["id"] in wanted)


def text_keys(
    model: str | Path, prompts: dict[str, str], *, adapter: Path | None = None, greedy: Sequence[str] = (), **sampling
) -> dict[str, str]:
    """By id, a digest of all that a text depends on: prompt, weights, sampling, precision and engine.

    Not of the code: a change that changes texts raises `VERSION`, and no other discards what was generated.
    """
    weights = [store.identity(store.find_model(str(model))), adapter and file_sha256(adapter / ADAPTER_WEIGHTS)]
    shared = [weights, sampling, engine(), VERSION, precision.dtype_name()]
    return {id_: digest(text, id_ in greedy, shared) for id_, text in prompts.items()}


def _by_vllm(model, prompts: dict, *, path: Path, **settings) -> Iterator[dict]:
    config, most = store.load_config(model), settings["max_new_tokens"]
    fitting, too_long = _fitting(store.load_tokenizer(model), config, prompts, max_new_tokens=most)
    yield from (_unwritten(id_, settings.get("seed", 0)) for id_ in too_long)
    yield from vllm_client.generate_texts(model, {id_: prompts[id_] for id_ in fitting}, path=path, **settings)
    path.unlink()
