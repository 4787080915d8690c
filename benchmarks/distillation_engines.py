"""Greedy rewrites in the hardware's own precision: the decode loop beside the engines that one would take instead.

    make bench-engines          # their environments; an engine without one is left out

Each engine runs in a process of its own, on the same token ids and threads. It is started, and has done a small piece
of work, before time is taken. In bfloat16 many texts part at ties, so answers are compared by what plain transformers
in float32 thinks of their tokens: a greedy text has the likeliest token at every place, but for rounding.
"""

import functools
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import distillation, some_rows
from benchmarks.engines import gguf_file
from sdd_utils import ROOT
from sdd_utils.base import precision
from sdd_utils.models import chat_format, store

NAME = "distillation, other engines"
FULL = {"rows": 32, "max_new_tokens": 48, "batch_size": 64, "every": 4}
LARGE = {"rows": 12, "max_new_tokens": 32, "every": 3}
SMALL = {"rows": 4, "max_new_tokens": 4, "batch_size": 4, "every": 1}
MEMORY = None  # what an engine holds is not this process's

# How far below the likeliest token, on average, a greedy text of bfloat16 may lie, in nats.
ROUNDING = 0.01
WORK = ROOT / "work" / "engines"
Ask = Callable[[list[list[int]], int], list[list[int]]]  # as `engines.exchange.Decode`
ours, amount = distillation.ours, distillation.amount
# By name in the table: the module in `engines/` and its environment (None: this one).
ENGINES = {
    "transformers generate_batch": ("transformers_batch", None),
    "vLLM, n-gram guesses": ("vllm_cpu", ".venv-vllm"),
    "OpenVINO GenAI": ("openvino", ".venv-bench-openvino"),
    "llama.cpp": ("llama_cpp", ".venv-bench-llama_cpp"),
}


def _python(environment: str | None) -> Path:
    return ROOT / environment / "bin" / "python" if environment else Path(sys.executable)


def prepare(model, *, scratch, rows: int, max_new_tokens: int, batch_size: int, every: int) -> dict:
    loaded, tokenizer = store.load_model(model)
    ends = chat_format.end_tokens(tokenizer, loaded.generation_config)
    prompts = distillation.prompts(tokenizer, max(rows, FULL["rows"]))
    longest = max(map(len, prompts.values())) + FULL["max_new_tokens"]
    engines = _engines(model, ends=ends, longest=longest, dtype=precision.dtype_name())
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    state = {"name": model, "model": loaded, "prompts": dict([*prompts.items()][:rows]), "ends": ends}
    return state | {"settings": settings, "engines": engines, "every": every, "read": {}}


class _Engines(dict):
    """Functions that ask engines, by name. The engines end with the last state that has them."""


def _engines(model: str, **asked) -> _Engines:
    """The engines of `PEERS` for a model: those that another state holds, or new ones."""
    key = (model, json.dumps(asked))
    found = _running.get(key)
    if found is None:
        _running[key] = found = _started(model, **asked)
    return found


_running: weakref.WeakValueDictionary[tuple, _Engines] = weakref.WeakValueDictionary()


def _started(model: str, *, ends: list[int], longest: int, dtype: str) -> _Engines:
    """The engines of `PEERS`, started and warm; one that fails leaves `PEERS`, with a sentence."""
    folder = WORK / f"{Path(model).name}-{store.weights_digest(model)}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": str(store.find_model(model)), "ends": ends, "rows": FULL["rows"], "longest": longest}
    settings |= {"threads": torch.get_num_threads(), "dtype": dtype, "folder": str(folder)}
    started = _Engines()
    for name, (module, environment) in ENGINES.items():
        if name not in PEERS:
            print(f"{name} is left out: run make bench-engines")
            continue
        try:
            if module == "llama_cpp" and not (folder / "model.gguf").is_file():
                gguf_file.write(model, folder / "model.gguf", ends=ends)
            started[name] = _start(module, environment, settings, log=folder / f"{module}.log")
        except (RuntimeError, ValueError) as failure:
            print(f"{name} is left out: {failure}")
            del PEERS[name]
    return started


def _start(module: str, environment: str | None, settings: dict, *, log: Path) -> Ask:
    """Start an engine in its environment; what it returns sends prompts to it and waits for the new tokens.

    Raises:
        RuntimeError: the process ended, now or at a later question.
    """
    command = [_python(environment), "-m", f"benchmarks.engines.{module}"]
    with log.open("w") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, **pipes)

    def say(content) -> None:
        try:
            process.stdin.write(json.dumps(content) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"its process ended, see {log}") from None

    def ask(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        say({"prompts": prompts, "max_new_tokens": max_new_tokens})
        if answer := process.stdout.readline():
            return json.loads(answer)
        raise RuntimeError(f"its process ended, see {log}")

    weakref.finalize(ask, _end, process)
    say(settings)
    ask([[token] * 8 for token in settings["ends"][:1] * 4], 4)
    return ask


def _end(process: subprocess.Popen) -> None:
    process.communicate()  # closes its input, and waits


def _by(state, name: str) -> dict[str, list[int]]:
    answers = state["engines"][name]([*state["prompts"].values()], state["settings"]["max_new_tokens"])
    return dict(zip(state["prompts"], answers, strict=True))


def _peer(name: str) -> tuple[Callable, int]:
    return functools.partial(_by, name=name), 1


PEERS = {name: _peer(name) for name, (_, environment) in ENGINES.items() if _python(environment).is_file()}


@functools.lru_cache(maxsize=1)
def _reader(model: str):
    return store.load_model(model, dtype=torch.float32)[0]


@torch.inference_mode()
def _nats(model: str, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    """Summed log-likelihoods of a row's new tokens, and of the likeliest token at each of their places."""
    read = torch.tensor([prompt + tokens])
    scores = _reader(model)(read, logits_to_keep=len(tokens) + 1).logits[0, :-1].log_softmax(dim=-1)
    return float(scores.gather(1, read[0, len(prompt) :, None]).sum()), float(scores.amax(dim=-1).sum())


def _per_token(state, answer: dict[str, list[int]]) -> tuple[float, float]:
    """Means over the new tokens of every so manieth row: log-likelihood, and how far the likeliest token's is above."""
    some, read = [*state["prompts"]][:: state["every"]], state["read"]
    for id_ in some:
        if (id_, *answer[id_]) not in read:
            read[id_, *answer[id_]] = _nats(state["name"], state["prompts"][id_], answer[id_])
    tokens = sum(len(answer[id_]) for id_ in some)
    taken, likeliest = (sum(read[id_, *answer[id_]][i] for id_ in some) / tokens for i in (0, 1))
    return taken, likeliest - taken


def _whole(state, tokens: list[int]) -> bool:
    """Whether a row ends with its first end token, or at the limit without one."""
    ended = [token in state["ends"] for token in tokens]
    return not any(ended[:-1]) and (ended[-1:] == [True] or len(tokens) == state["settings"]["max_new_tokens"])


def same(state, ours, peer) -> tuple[bool, str]:
    """Every row ends as asked, and only by rounding are the likeliest tokens above those taken, as with ours."""
    (taken, below), (own, own_below) = (_per_token(state, answer) for answer in (peer, ours))
    whole = ours.keys() == peer.keys() and all(_whole(state, tokens) for tokens in [*ours.values(), *peer.values()])
    rows = f"{len(ours)} rows of {some_rows.NAME}, {state['settings']['max_new_tokens']} new tokens at most"
    told = f"{sum(ours[id_] != peer[id_] for id_ in peer)} texts differ, log-likelihood per token {taken:.3f} (ours "
    told += f"{own:.3f}), that of the likeliest tokens {below:.4f} above it ({own_below:.4f})"
    return whole and max(below, own_below) < ROUNDING, f"{rows}, {told}"
