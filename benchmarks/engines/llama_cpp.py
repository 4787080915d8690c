"""llama.cpp (package `xllamacpp`): its server, a slot per row, on a GGUF file in the model's own precision."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from benchmarks.engines import exchange


def start(
    *, model: str, ends: list[int], rows: int, longest: int, threads: int, dtype: str, folder: str
) -> exchange.Decode:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_parallel, settings.n_ctx = f"{folder}/model.gguf", rows, rows * longest
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.cache_ram_mib = 0  # finished rows are not kept for later prompts that begin like them
    server = xllamacpp.Server(settings)  # it ends with its last reference

    def complete(prompt: list[int], max_new_tokens: int) -> list[int]:
        greedy = {"temperature": 0, "cache_prompt": False, "return_tokens": True}
        content = json.dumps({"prompt": prompt, "n_predict": max_new_tokens, **greedy}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/completion", content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    def decode(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return [*pool.map(complete, prompts, [max_new_tokens] * len(prompts))]

    return decode


if __name__ == "__main__":
    exchange.serve(start)
