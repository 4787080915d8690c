"""How far a model has left the original where accuracy cannot see it yet: on the original's own greedy answers.

At every token of such an answer two numbers are taken, in nats: the negative log-likelihood of the token under the
model, and the Kullback-Leibler divergence KL(original || model) of the distributions of the next token.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm

from sdd_utils.base import precision
from sdd_utils.base.files import digest, file_sha256, keep_rows, read_json_lines
from sdd_utils.data.rows import question_of
from sdd_utils.engine import packed_linear
from sdd_utils.engine.generation import generate_file
from sdd_utils.models import architecture, chat_format, store
from sdd_utils.models.chat_format import render
from sdd_utils.models.store import load_tokenizer

VERSION = 1  # raise it when a change of the code changes likelihoods
SAMPLED = " sampled"  # behind the id of an answer that was not decoded greedily


def answer_questions(
    model: str | Path, questions: dict[str, str], *, path: Path, adapter: Path | None = None, **settings
) -> dict[str, list[dict]]:
    """Answers to questions in chat format, greedy ones and sampled ones, decoded together.

    Args:
        questions: by id.
        path, adapter, settings: see `generation.generate_file`; the temperature is that of the sampled answers.

    Returns:
        {"greedy": rows, "sampled": rows} of {id, question, prompt, text, finish, n_tokens, end_token, seed}; `prompt`
        is the rendered conversation, `text` the answer without thinking, and the id of a sampled answer ends with
        `SAMPLED`.
    """
    tokenizer = load_tokenizer(model)
    texts_asked = questions | {id_ + SAMPLED: text for id_, text in questions.items()}
    prompts = {id_: render(tokenizer, [{"role": "user", "content": text}]) for id_, text in texts_asked.items()}
    texts = generate_file(model, prompts, path=path, adapter=adapter, greedy=[*questions], **settings)
    asked = [{"question": texts_asked[text["id"]], "prompt": prompts[text["id"]]} for text in texts]
    rows = [_without_thinking(text) | question for text, question in zip(texts, asked, strict=True)]
    return {"greedy": rows[: len(questions)], "sampled": rows[len(questions) :]}


def _without_thinking(row: dict) -> dict:
    """The row with its answer alone; one that never came to its answer counts as cut."""
    answer = chat_format.without_thinking(row["text"])
    return row | ({"text": "", "finish": "length", "end_token": None} if answer is None else {"text": answer})


def read_answers(path: Path, *, sha256: str, sampled: bool = False) -> list[dict]:
    """The original's greedy answers to one data set's questions, or its sampled ones, as 02 wrote them at n = 0.

    Args:
        sha256: of the file, from the record of 02.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it was written anew since.
    """
    if path.is_file() and file_sha256(path) != sha256:
        raise ValueError(f"{path.name} is not what 02 wrote: run notebooks/02_pruning.ipynb at block size 0")
    return [row for row in read_json_lines(path) if row["id"].endswith(SAMPLED) == sampled]


def measure_fidelity(original, model, tokenizer, answers: dict[str, list[dict]]) -> dict[str, dict]:
    """Fidelity of a model on the original's answers; answers are tokenised anew, with the end token that closed them.

    One answer is read at a time, so that no more is held than the distributions of its tokens under both models.

    Args:
        original, model: two loaded models of one vocabulary.
        answers: rows from `read_answers` by data set.

    Returns:
        by data set: {nll, kl, tokens, documents: [[nll_sum, kl_sum, n_tokens], ...]}, means and sums in nats, a
        document per answer; one without tokens counts as [0, 0, 0].

    Raises:
        ValueError: no answer of a data set has a token.
    """
    fidelity = {}
    with packed_linear.packed_linears(original), packed_linear.packed_linears(model):
        for data_set, rows in answers.items():
            rows = tqdm(rows, desc=f"fidelity on {data_set}", unit="answer", disable=None)
            documents = [_document(original, model, *token_ids(tokenizer, row)) for row in rows]
            nll, kl, tokens = map(sum, zip(*documents, strict=True))
            if not tokens:
                raise ValueError(
                    f"every answer of the original to {data_set} is empty: use an instruct model, or other data_sets"
                )
            fidelity[data_set] = {"nll": nll / tokens, "kl": kl / tokens, "tokens": tokens, "documents": documents}
    return fidelity


def response_nll(
    model: str | Path, rows: list[dict], sets: dict[str, list[str]], *, path: Path
) -> dict[str, list[float]]:
    """Mean negative log-likelihood per token (nats) of each response to its row's question in chat format.

    It says how foreign a response is to a model: fine-tuning on text that the model finds likely changes it less.

    Args:
        model: name or folder; loaded only if a likelihood is missing from the file.
        sets: by name, one response per row. One that is the same in several sets is read once.
        path: a file of JSON lines that only ever grows.

    Returns:
        by set, one number per row.
    """
    tokenizer = load_tokenizer(model)
    prompts = [render(tokenizer, [{"role": "user", "content": question_of(row)}]) for row in rows]
    weights = store.identity(store.find_model(str(model)))
    depends_on = [weights, precision.dtype_name(), VERSION, chat_format.turn_end(tokenizer)]
    pairs = {name: list(zip(prompts, texts, strict=True)) for name, texts in sets.items()}
    keys = {name: [digest(pair, depends_on) for pair in set_pairs] for name, set_pairs in pairs.items()}
    by_key = {key: pair for name in sets for key, pair in zip(keys[name], pairs[name], strict=True)}

    def make(missing: list[str]) -> Iterator[dict]:
        loaded, _ = store.load_model(model)
        with packed_linear.packed_linears(loaded):
            for key in tqdm(missing, desc="likelihood", unit="response", disable=None):
                prompt, text = by_key[key]
                row = {"prompt": prompt, "text": text, "finish": "stop"}
                yield {"id": key, "nll": _mean_nll(loaded, *token_ids(tokenizer, row))}

    nll = {row["id"]: row["nll"] for row in keep_rows(path, {key: key for key in by_key}, make=make)}
    return {name: [nll[key] for key in set_keys] for name, set_keys in keys.items()}


@torch.inference_mode()
def _mean_nll(model, prompt: list[int], answered: list[int]) -> float:
    ids = torch.tensor([prompt + answered])
    ids = ids[:, -int(min(ids.shape[1], architecture.context_length(model.config))) :]  # cut on the left, as in lm-eval
    answered = answered[1 - ids.shape[1] :]
    return float(_token_nll(_log_probs(model, ids, len(answered)), answered).mean())


def token_ids(tokenizer, row: dict) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer, which ends with the end token that closed it unless it was cut."""
    end = row.get("end_token")
    end = chat_format.turn_end(tokenizer) if end is None else end
    prompt, text = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "text"))
    return prompt, text + [end] * (row["finish"] == "stop")


@torch.inference_mode()
def _document(original, model, prompt: list[int], answered: list[int]) -> list[float]:
    """[nll_sum, kl_sum, n_tokens] of one answer."""
    if not answered:
        return [0.0, 0.0, 0]
    ids = torch.tensor([prompt + answered])
    expected, log_probs = (_log_probs(reader, ids, len(answered)) for reader in (original, model))
    nll = _token_nll(log_probs, answered).sum()
    kl = functional.kl_div(log_probs, expected, log_target=True, reduction="sum")
    return [float(nll), float(kl), len(answered)]


def _token_nll(log_probs: torch.Tensor, answered: list[int]) -> torch.Tensor:
    """(answered,) negative log-likelihoods of an answer's tokens."""
    return -log_probs.gather(1, torch.tensor(answered, device=log_probs.device)[:, None])[:, 0]


def _log_probs(model, ids: torch.Tensor, answered: int) -> torch.Tensor:
    """(answered, vocabulary) float32 log-probabilities of the last `answered` tokens' places."""
    return torch.log_softmax(answer_logits(model, ids, answered).float(), dim=-1)


def answer_logits(model, ids: torch.Tensor, answered: int) -> torch.Tensor:
    """(answered, vocabulary) logits of the last `answered` tokens' places, in the model's precision."""
    logits = model(input_ids=ids.to(model.device), logits_to_keep=answered + 1, use_cache=False).logits
    return logits[0, -answered - 1 : -1]  # some models give the logits of all tokens
