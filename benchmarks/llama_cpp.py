"""Tokens and log-likelihoods by llama.cpp (package `xllamacpp`), for `gguf_likelihoods`; needs nothing of this project.

Reads {file, threads, texts, pairs} as JSON from stdin, and prints {version, tokens, nats}.
"""

import json
import sys
import urllib.request


def main() -> None:
    """Serve the file and ask about every text and every pair of prompt and continuation, both as token ids."""
    import xllamacpp

    asked = json.load(sys.stdin)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = asked["file"], 512, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = asked["threads"]
    server = xllamacpp.Server(settings)
    address = server.listening_address
    whole = {"add_special": False, "parse_special": True}
    tokens = [_post(f"{address}/tokenize", content=text, **whole)["tokens"] for text in asked["texts"]]
    nats = [sum(_nats(address, p + c[:i], c[i]) for i in range(len(c))) for p, c in asked["pairs"]]
    print(json.dumps({"version": xllamacpp.__version__, "tokens": tokens, "nats": nats}))


def _nats(address: str, prompt: list[int], token: int) -> float:
    """The log-likelihood of a token. The bias has it taken; what is reported is that of the logits without the bias."""
    settings = {"logit_bias": [[token, 1e4]], "n_predict": 1, "n_probs": 1, "ignore_eos": False}
    (taken,) = _post(f"{address}/completion", prompt=prompt, **settings)["completion_probabilities"]
    if taken["id"] != token:
        raise RuntimeError(f"llama.cpp took token {taken['id']}, not {token}")
    return taken["logprob"]


def _post(address: str, **content) -> dict:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
