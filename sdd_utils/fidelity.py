"""How far a model has left the original where accuracy cannot see it yet: on the original's own greedy answers.

At every token of such an answer two numbers are taken, in nats: the negative log-likelihood of the token under the
model, and the Kullback-Leibler divergence KL(original || model) of the distributions of the next token.
"""

from pathlib import Path

import torch
from torch.nn import functional
from tqdm.auto import tqdm

from sdd_utils import packed
from sdd_utils.distillation import question_of
from sdd_utils.generation import generate_file, read_rows, render
from sdd_utils.models import load_tokenizer

SAMPLED = " sampled"  # behind the id of an answer that was not decoded greedily


def answer(
    model: str | Path, questions: dict[str, str], *, path: Path, adapter: Path | None = None, **settings
) -> dict[str, list[dict]]:
    """Answers to questions in chat format, greedy ones and sampled ones, decoded together and kept in one file.

    Args:
        questions: by id.
        adapter, settings: see `generation.generate_file`; the sampling's temperature is that of the sampled answers.

    Returns:
        {"greedy": rows, "sampled": rows} of {id, question, prompt, text, finish, n_tokens, seed}; `prompt` is the
        rendered conversation, and the id of a sampled answer ends with `SAMPLED`.
    """
    tokenizer = load_tokenizer(model)
    asked = questions | {id_ + SAMPLED: text for id_, text in questions.items()}
    prompts = {id_: render(tokenizer, [{"role": "user", "content": text}]) for id_, text in asked.items()}
    rows = generate_file(
        model,
        prompts,
        path=path,
        adapter=adapter,
        finish_row=lambda out: out | {"question": asked[out["id"]], "prompt": prompts[out["id"]]},
        depends_on=[questions],
        greedy=[*questions],
        **settings,
    )
    return {"greedy": rows[: len(questions)], "sampled": rows[len(questions) :]}


def answer_path(run_folder: Path, data_set: str) -> Path:
    """Where a run keeps the original model's answers to a data set's held-out questions."""
    return run_folder / "answers" / f"{data_set}-original.jsonl"


def read_answers(run_folder: Path, data_sets: list[str], *, sampled: bool = False) -> dict[str, list[dict]]:
    """The original's greedy answers by data set, or its sampled ones. FileNotFoundError, with the mend, before 03."""
    found = {data_set: read_rows(answer_path(run_folder, data_set)) for data_set in data_sets}
    return {name: [row for row in rows if row["id"].endswith(SAMPLED) == sampled] for name, rows in found.items()}


def measure(original, model, tokenizer, answers: dict[str, list[dict]]) -> dict[str, dict]:
    """Fidelity of a model on the original's answers; answers are tokenised anew, their end token included.

    One answer is read at a time, so that no more is held than the distributions of its tokens under both models.

    Args:
        original, model: two loaded models of one vocabulary.
        answers: rows from `answer` by data set.

    Returns:
        by data set: {nll, kl, tokens, documents: [[nll_sum, kl_sum, n_tokens], ...]}, means and sums in nats, a
        document per answer; one without tokens counts as [0, 0, 0].

    Raises:
        ValueError: no answer of a data set has a token.
    """
    found = {}
    with packed.linears(original), packed.linears(model):
        for data_set, rows in answers.items():
            rows = tqdm(rows, desc=f"fidelity on {data_set}", unit="answer", disable=None)
            documents = [_document(original, model, *_tokens(tokenizer, row)) for row in rows]
            nll, kl, tokens = map(sum, zip(*documents, strict=True))
            if not tokens:
                raise ValueError(f"every answer of the original to {data_set} is empty: raise answer_prompts")
            found[data_set] = {"nll": nll / tokens, "kl": kl / tokens, "tokens": tokens, "documents": documents}
    return found


def response_nll(model, tokenizer, rows: list[dict], sets: dict[str, list[str]]) -> dict[str, list[float]]:
    """Mean negative log-likelihood per token (nats) of each response to its row's question in chat format.

    It says how foreign a response is to a model: fine-tuning on text that the model finds likely changes it less.

    Args:
        sets: by name, one response per row. One that is the same in several sets is read once.

    Returns:
        by set, one number per row.
    """
    found = {name: [] for name in sets}
    with packed.linears(model):
        for row, *responses in zip(tqdm(rows, desc="likelihood", disable=None), *sets.values(), strict=True):
            prompt = render(tokenizer, [{"role": "user", "content": question_of(row)}])
            texts = {text: {"prompt": prompt, "text": text, "finish": "stop"} for text in responses}
            nll = {text: _nll(model, *_tokens(tokenizer, answer)) for text, answer in texts.items()}
            for own, text in zip(found.values(), responses, strict=True):
                own.append(nll[text])
    return found


@torch.inference_mode()
def _nll(model, prompt: list[int], answered: list[int]) -> float:
    ids = torch.tensor([prompt + answered])
    return float(_token_nll(_log_probs(model, ids, len(answered)), answered).mean())


def _tokens(tokenizer, row: dict) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer, which ends with the end token unless it was cut."""
    prompt, text = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "text"))
    return prompt, text + [tokenizer.eos_token_id] * (row["finish"] == "stop")


@torch.inference_mode()
def _document(original, model, prompt: list[int], answered: list[int]) -> list[float]:
    """[nll_sum, kl_sum, n_tokens] of one answer."""
    if not answered:
        return [0.0, 0.0, 0]
    ids = torch.tensor([prompt + answered])
    theirs, ours = (_log_probs(one, ids, len(answered)) for one in (original, model))
    nll = _token_nll(ours, answered).sum()
    kl = functional.kl_div(ours, theirs, log_target=True, reduction="sum")
    return [float(nll), float(kl), len(answered)]


def _token_nll(log_probs: torch.Tensor, answered: list[int]) -> torch.Tensor:
    """(answered,) negative log-likelihoods of an answer's tokens."""
    return -log_probs.gather(1, torch.tensor(answered, device=log_probs.device)[:, None])[:, 0]


def _log_probs(model, ids: torch.Tensor, answered: int) -> torch.Tensor:
    """(answered, vocabulary) float32 log-probabilities of the last `answered` tokens' places."""
    logits = model(input_ids=ids.to(model.device), logits_to_keep=answered + 1, use_cache=False).logits
    return torch.log_softmax(logits[0, :-1].float(), dim=-1)
