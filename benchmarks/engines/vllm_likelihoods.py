"""Log-likelihoods by vLLM, for `benchmarks.serving`; runs in vLLM's environment and needs nothing of this project.

Reads {model, dtype, threads, pairs} as JSON from stdin, and prints {version, nats}: of every pair of prompt and
continuation, both as token ids, the continuation's summed log-likelihood.
"""

import json
import os
import sys


def main() -> None:
    """Score every pair by the log-probabilities of its tokens as a prompt."""
    asked = json.load(sys.stdin)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": str(asked["threads"]), "VLLM_NO_USAGE_STATS": "1"}
    import vllm

    settings = {"dtype": asked["dtype"], "max_model_len": 512, "enforce_eager": True, "trust_remote_code": False}
    llm = vllm.LLM(model=asked["model"], **settings, enable_prefix_caching=False)
    prompts = [vllm.TokensPrompt(prompt_token_ids=prompt + continuation) for prompt, continuation in asked["pairs"]]
    params = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    nats = []
    for output, (prompt, continuation) in zip(
        llm.generate(prompts, params, use_tqdm=False), asked["pairs"], strict=True
    ):
        places = zip(output.prompt_logprobs[len(prompt) :], continuation, strict=True)
        nats.append(sum(place[token].logprob for place, token in places))
    print(json.dumps({"version": vllm.__version__, "nats": nats}))


if __name__ == "__main__":
    main()
