"""transformers' continuous batching, `generate_batch`."""

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.engines import exchange

PAGE = 32  # tokens; attention on CPUs reads whole pages


def start(
    *, model: str, ends: list[int], rows: int, longest: int, threads: int, dtype: str, folder: str = ""
) -> exchange.Decode:
    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False).eval()
    # Left to itself, it would take most of the machine's memory for pages.
    pages = {"page_size": PAGE, "num_blocks": rows * (-(-longest // PAGE) + 1), "max_batch_tokens": 1024}
    batching = ContinuousBatchingConfig(**pages, max_requests_per_batch=rows)

    def decode(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        ending = {"eos_token_id": ends, "pad_token_id": ends[0], "max_new_tokens": max_new_tokens}
        config = GenerationConfig(do_sample=False, **ending)
        finished = loaded.generate_batch(prompts, generation_config=config, continuous_batching_config=batching)
        return [row.generated_tokens for row in finished.values()]

    return decode


if __name__ == "__main__":
    exchange.serve(start)
