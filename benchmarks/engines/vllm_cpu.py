"""vLLM's CPU build as it comes, compiled, with guesses by n-grams."""

import os

from benchmarks.engines import exchange
from sdd_utils.engine import vllm_process


def start(
    *,
    model: str,
    ends: list[int],
    rows: int,
    longest: int,
    threads: int,
    dtype: str,
    folder: str,
) -> exchange.Decode:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": str(threads), "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams, TokensPrompt

    settings = {"dtype": dtype, "max_model_len": longest, "max_num_seqs": rows, "disable_log_stats": True}
    llm = LLM(model=model, **settings, speculative_config=vllm_process.SPECULATION, trust_remote_code=False)

    def decode(prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        llm.reset_prefix_cache()  # what an earlier job asked is new again
        ending = {"max_tokens": max_new_tokens, "ignore_eos": True, "stop_token_ids": ends, "detokenize": False}
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        finished = llm.generate(asked, SamplingParams(temperature=0, **ending), use_tqdm=False)
        return [[*row.outputs[0].token_ids] for row in finished]

    return decode


if __name__ == "__main__":
    exchange.serve(start)
