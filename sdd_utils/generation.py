"""Batched text generation whose result for a row does not depend on the other rows, or on where a run stopped.

Every row has its own seed, derived from its id. A rerun of an interrupted job generates only the rows that are
missing; they come out as they would have, up to ties within rounding, whatever is decoded beside them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jinja2
import transformers
from tqdm.auto import tqdm

from sdd_utils import decoding, hardware, models, vllm_installed

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRANSFORMERS = f"transformers {transformers.__version__}"


def engine() -> str:
    """What generates here, with its version: vLLM where `make vllm` installed it, else transformers.

    SDD_ENGINE=transformers or vllm overrides it. Texts of two engines agree up to floating-point ties.
    """
    found = vllm_installed.engine()
    return f"{found['name']} {found['version']}" if found else TRANSFORMERS


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
    system, user, *rest = messages
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]


def generate(
    model,
    tokenizer,
    prompts: dict[str, str],
    *,
    done: frozenset[str] = frozenset(),
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
        done: ids that need no text any more.
        batch_size: rows decoded at once; does not change a row's text beyond ties within rounding.
        temperature: 0 is greedy decoding.
        greedy: ids of rows that are decoded greedily at any temperature.

    Yields:
        {id, text, finish: "stop" | "length", n_tokens, seed}, where n_tokens counts the end token.
    """
    encoded = {
        id_: tokenizer(text, add_special_tokens=False)["input_ids"] for id_, text in prompts.items() if id_ not in done
    }
    ends = end_tokens(model, tokenizer)
    drawing = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed, "greedy": greedy}
    draw = decoding.sampler(max_new_tokens=max_new_tokens, **drawing)
    decode = decoding.decode if decoding.supports(model) else decoding.generate_batches
    rows = decode(model, encoded, batch_size=batch_size, max_new_tokens=max_new_tokens, ends=ends, draw=draw)
    for id_, tokens in tqdm(rows, total=len(encoded), desc="generation", unit="row", disable=None):
        yield {"id": id_, **_finished(tokenizer, tokens, ends), "seed": seed}


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
    finish_row: Callable[[dict], dict] = dict,
    depends_on: list | None = None,
    speculate: bool = False,
    **settings,
) -> list[dict]:
    """Generate into a JSON-lines file by the engine at hand, a line per row; a rerun adds what is missing.

    Args:
        model: name or folder; loaded only if a row is missing.
        adapter: a LoRA adapter to merge into the model.
        finish_row: turns an output of `generate` into the row to keep; it must keep the id.
        depends_on: whatever else the rows depend on. If it, the prompts, the weights, the settings, the engine or
            the code changed since the file was begun, the file is begun anew.
        speculate: answers copy from their prompts: vLLM guesses tokens from there (docs/vllm.md).
        settings: see `generate`.

    Returns:
        the rows, in the order of `prompts`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = [models.identity(models.find(str(model))), adapter and models.sha256(adapter / ADAPTER_WEIGHTS)]
    parts = [prompts, weights, settings, depends_on, engine(), str(hardware.best_dtype()), _code()]
    _begin(path, key=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())
    done = frozenset(row["id"] for row in read_rows(path, half_line="drop"))
    if not done.issuperset(prompts):
        outputs = _by_transformers if engine() == TRANSFORMERS else partial(_by_vllm, path=path, speculate=speculate)
        with path.open("a", encoding="utf-8") as file:
            for output in outputs(model, prompts, adapter=adapter, done=done, **settings):
                file.write(json.dumps(finish_row(output), ensure_ascii=False) + "\n")
                file.flush()
    rows = {row["id"]: row for row in read_rows(path)}
    return [rows[id_] for id_ in prompts]


def _code() -> list[str]:
    """Digests of the modules that the engine at hand generates with."""
    own = ["generation", "models", "hardware", "decoding", "drafts", "slots", "attention", "packed"]
    names = own if engine() == TRANSFORMERS else ["vllm_client", "vllm_process"]
    return [models.sha256(Path(__file__).with_name(f"{name}.py")) for name in names]


def _by_transformers(model, prompts: dict, *, adapter: Path | None, **settings) -> Iterator[dict]:
    yield from generate(*models.load(model, adapter=adapter), prompts, **settings)


def _by_vllm(model, prompts: dict, *, adapter, done, path: Path, batch_size: int, **settings) -> Iterator[dict]:
    """The missing rows. vLLM keeps its own file until they are all there; it forms its batches itself."""
    from sdd_utils import vllm_client  # here, for it imports this module

    left = {id_: text for id_, text in prompts.items() if id_ not in done}
    raw = _raw(path)
    yield from vllm_client.generate(model, left, path=raw, adapter=adapter, **settings)
    raw.unlink()


def _raw(path: Path) -> Path:
    return path.with_suffix(".vllm.jsonl")


def _begin(path: Path, *, key: str) -> None:
    """Empty the file unless it was begun with the same key, which is kept beside it."""
    beside = path.with_suffix(".key")
    if not (path.is_file() and beside.is_file() and beside.read_text() == key):
        path.write_text("")
        _raw(path).unlink(missing_ok=True)
        beside.write_text(key)


def read_rows(path: Path, *, half_line: str = "error") -> list[dict]:
    """Rows of a JSON-lines file.

    Args:
        half_line: what to do with a last line that a killed run left unfinished: "error", or "drop" it from the file.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is not JSON; with the mend.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} does not exist yet: run notebooks/03_self_data_distillation.ipynb first")
    lines = path.read_bytes().split(b"\n")
    if lines[-1] and half_line == "drop":
        path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
    rows = []
    for number, line in enumerate(lines[:-1] if half_line == "drop" else lines, start=1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise ValueError(
                f"{path.name}, line {number} is not complete JSON: run the notebook that makes it again"
            ) from error
    return rows
