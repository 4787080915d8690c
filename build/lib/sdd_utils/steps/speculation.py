"""Speculative decoding with a pruned model as the draft: what of it the original accepts (arXiv 2211.17192).

Acceptance needs no decoding. Both models read the original's own answers, and at each token their distributions p
(original) and q (draft) say whether the draft's token would stay: where both have the same likeliest token, if decoding
is greedy, and with probability sum_v min(p_v, q_v) if tokens are drawn at temperature 1.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from sdd_utils.base import precision
from sdd_utils.base.files import digest, file_sha256, keep_rows
from sdd_utils.engine import packed_linear
from sdd_utils.engine.generation import ADAPTER_WEIGHTS
from sdd_utils.models import chat_format, store
from sdd_utils.models.chat_format import render
from sdd_utils.steps import fidelity, timing

VERSION = 1  # raise it when a change of the code changes acceptance


def accepted_mass(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(...) probabilities sum_v min(p_v, q_v) that a token drawn from q is accepted; p and q are (..., vocabulary).

    Drawn tokens stay with probability min(1, p/q), and another is drawn from `rest` else: together that is p.
    """
    return torch.minimum(p, q).sum(dim=-1)


def rest(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(..., vocabulary) distribution that the original draws from after a rejection: max(p - q, 0), normalised."""
    left = (p - q).clamp(min=0)
    return left / left.sum(dim=-1, keepdim=True)


def measure_drafts(
    original: str | Path, drafts: dict[str, dict], answers: dict[str, list[dict]], *, path: Path
) -> dict[str, dict]:
    """Acceptance of each draft, kept draft by draft in a file.

    Args:
        original: name or folder.
        drafts: by name {checkpoint: folder, adapter: folder or None}.
        answers: of the original, rows from `fidelity.read_answers` by data set.
        path: a file of JSON lines that only ever grows.

    Returns:
        by draft, what `measure_acceptance` returns.
    """
    texts = {name: [[row["prompt"], row["text"], row["finish"]] for row in rows] for name, rows in answers.items()}
    shared = [VERSION, precision.dtype_name(), store.weights_digest(original), texts]
    keys = {name: digest(shared, *_weights(**draft)) for name, draft in drafts.items()}

    def make(missing: list[str]) -> Iterator[dict]:
        expected = read_logits(*store.load_model(original), answers)
        for name in tqdm(missing, desc="acceptance", unit="draft", disable=None):
            loaded = store.load_model(drafts[name]["checkpoint"], adapter=drafts[name]["adapter"])
            yield {"id": name, "acceptance": measure_acceptance(expected, *loaded, answers)}

    return {row["id"]: row["acceptance"] for row in keep_rows(path, keys, make=make)}


def _weights(*, checkpoint: Path, adapter: Path | None) -> tuple:
    return store.identity(checkpoint), adapter and file_sha256(adapter / ADAPTER_WEIGHTS)


@torch.inference_mode()
def read_logits(model, tokenizer, answers: dict[str, list[dict]]) -> dict[str, list[torch.Tensor]]:
    """By data set, (tokens, vocabulary) logits of each answer under a model, in its precision.

    All of them are held at once, so that the original reads its answers once for all drafts.
    """
    with packed_linear.packed_linears(model):
        return {
            name: [_logits(model, *fidelity.token_ids(tokenizer, row)) for row in rows]
            for name, rows in answers.items()
        }


def _logits(model, prompt: list[int], answered: list[int]) -> torch.Tensor:
    return fidelity.answer_logits(model, torch.tensor([prompt + answered]), len(answered))


@torch.inference_mode()
def measure_acceptance(
    expected: dict[str, list[torch.Tensor]], draft, tokenizer, answers: dict[str, list[dict]]
) -> dict[str, dict]:
    """How often the original would accept a draft's tokens.

    Args:
        expected: the original's logits, see `read_logits`.
        draft: a loaded model of the same vocabulary.

    Returns:
        by data set {greedy_acceptance, sampling_acceptance, tokens, documents: [[greedy_sum, sampling_sum, n_tokens],
        ...]}: means over tokens, and a document per answer.
    """
    found = {}
    with packed_linear.packed_linears(draft):
        for name, rows in answers.items():
            drafted = (_logits(draft, *fidelity.token_ids(tokenizer, row)) for row in rows)
            documents = [_accepted(*pair) for pair in zip(expected[name], drafted, strict=True)]
            greedy, sampled, tokens = map(sum, zip(*documents, strict=True))
            means = {"greedy_acceptance": greedy / tokens, "sampling_acceptance": sampled / tokens}
            found[name] = means | {"tokens": tokens, "documents": documents}
    return found


def _accepted(expected: torch.Tensor, drafted: torch.Tensor) -> list[float]:
    """[greedy_sum, sampling_sum, n_tokens] of one answer."""
    same = expected.argmax(dim=-1) == drafted.argmax(dim=-1)
    p, q = (torch.softmax(logits.float(), dim=-1) for logits in (expected, drafted))
    return [int(same.sum()), float(accepted_mass(p, q).sum()), len(same)]


def cost_of_passes(original, draft, *, draft_tokens: int) -> dict[str, float]:
    """Median seconds of a decoding pass: of the `original` and the `draft` over one token, and of the `verification`,
    by the original, of `draft_tokens` tokens and one more."""
    timed = {"original": (original, 1), "draft": (draft, 1), "verification": (original, draft_tokens + 1)}
    with packed_linear.packed_linears(original), packed_linear.packed_linears(draft):
        return timing.pass_seconds(timed)


def decode_with_draft(
    original, draft, tokenizer, questions: list[str], *, draft_tokens: int, max_new_tokens: int
) -> dict:
    """Greedy answers in chat format by transformers' assisted generation, beside the same without a draft.

    Args:
        original, draft: two loaded models of one vocabulary; float32, so that rounding decides no token.
        draft_tokens: drafted before each pass of the original.

    Returns:
        {prompts, tokens, same_texts, passes, replayed_passes, greedy_acceptance, seconds: {plain, assisted}}: prompts
        and generated tokens, how many texts are the same with and without the draft, passes of the original, how many
        passes follow from two forward passes over these texts, and the greedy acceptance by these.
    """
    _decode_greedily(original, draft, tokenizer, draft_tokens=draft_tokens)
    prompts = [
        tokenizer(render(tokenizer, [{"role": "user", "content": question}]), add_special_tokens=False)["input_ids"]
        for question in questions
    ]
    with packed_linear.packed_linears(original), packed_linear.packed_linears(draft):
        plain = _generated(original, prompts, max_new_tokens=max_new_tokens)
        assisted = _generated(original, prompts, max_new_tokens=max_new_tokens, assistant_model=draft)
        texts = list(zip(prompts, plain["texts"], strict=True))
        agreed = [_agreement(draft, *text) for text in tqdm(texts, desc="two passes", unit="text", disable=None)]
    tokens = sum(map(len, plain["texts"]))
    limits = {"draft_tokens": draft_tokens, "max_new_tokens": max_new_tokens}
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "same_texts": sum(a == b for a, b in zip(plain["texts"], assisted["texts"], strict=True)),
        "passes": assisted["passes"],
        "replayed_passes": sum(replayed_passes(same, **limits) for same in agreed),
        "greedy_acceptance": sum(map(sum, agreed)) / tokens,
        "seconds": {"plain": plain["seconds"], "assisted": assisted["seconds"]},
    }


def _decode_greedily(original, draft, tokenizer, *, draft_tokens: int) -> None:
    """Have both decode greedily, without penalties that a checkpoint may bring; the draft always drafts as many."""
    ends = chat_format.end_tokens(tokenizer, original.generation_config)
    settings = {"do_sample": False, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    drafting = {"num_assistant_tokens": draft_tokens, "num_assistant_tokens_schedule": "constant"}
    original.generation_config = transformers.GenerationConfig(**settings)
    draft.generation_config = transformers.GenerationConfig(**settings, **drafting, assistant_confidence_threshold=0.0)


@torch.inference_mode()
def _generated(model, prompts: list[list[int]], **settings) -> dict:
    """{texts: new tokens of each prompt, passes: of the model, seconds}."""
    texts, passes = [], []
    counter = model.register_forward_pre_hook(lambda *_: passes.append(1))
    began = time.perf_counter()
    for prompt in tqdm(prompts, desc="generation", unit="text", disable=None):
        ids = torch.tensor([prompt], device=model.device)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        texts.append(found[0, len(prompt) :].tolist())
    counter.remove()
    return {"texts": texts, "passes": len(passes), "seconds": time.perf_counter() - began}


@torch.inference_mode()
def _agreement(draft, prompt: list[int], text: list[int]) -> list[bool]:
    """At each token of a text, whether it is the one that the draft finds likeliest there."""
    return (_logits(draft, prompt, text).argmax(dim=-1) == torch.tensor(text, device=draft.device)).tolist()


def replayed_passes(agreed: list[bool], *, draft_tokens: int, max_new_tokens: int) -> int:
    """How many passes the original needs for a text, as its tokens agree with a draft's likeliest ones.

    Each pass accepts drafted tokens up to the first that does not agree, and adds the original's own. No more are
    drafted than leave room for that one.
    """
    done = passes = 0
    while done < len(agreed):
        room = min(draft_tokens, max_new_tokens - done - 1)
        drafted = [*agreed[done : done + room], False]
        done, passes = done + drafted.index(False) + 1, passes + 1
    return passes
