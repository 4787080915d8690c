"""Score a model with lm-eval: stock tasks, and the offline ones under `sdd_utils/tasks/`.

Every score says its metric, filter, shots, template, task version, number of documents and standard error, and
keeps each document's value, so that models can be compared document by document.
"""

import functools
import math
import re
from pathlib import Path

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tqdm.auto import tqdm

from sdd_utils import models, sources

TASKS = Path(__file__).parent / "tasks"
# Of the metrics a task reports, the first of these stands for it; a perplexity becomes nats per word.
_PREFERRED = ("acc_norm", "exact_match", "acc", "word_perplexity")
_NAMES = re.compile(r"^[ \t]*(?:- *)?(?:(?:task|group|tag): *|(?<=- ))[\"']?([\w.-]+)[\"']?[ \t]*$", re.MULTILINE)
_PREFERRED_FILTERS = ("none", "flexible-extract")
_LEADERBOARD_FILTERS = {"gsm8k": "strict-match"}  # what Open LLM Leaderboard v1 counted; `all` has both


def local_tasks() -> list[str]:
    """Names of the tasks that need no network."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def check_tasks(tasks: dict[str, int]) -> None:
    """Raise ValueError, in one sentence, if a task is neither ours nor named anywhere in lm-eval's task files.

    Searching the files takes a second; lm-eval's own index, which settles it, takes a quarter of a minute.
    """
    unknown = set(tasks) - set(local_tasks())
    if unknown:
        for task in sorted(unknown - _lm_eval_names()):
            allowed = f"one of {', '.join(local_tasks())}, or a task of lm-eval ('lm-eval ls tasks' lists them)"
            raise ValueError(f"task {task!r} is unknown: use {allowed} (study key tasks)")


def fetch(tasks: dict[str, int]) -> str:
    """Download the documents of the tasks that are not ours; says how many tasks there are, groups unfolded.

    Raises:
        ValueError: an unknown task.
        FileNotFoundError, OSError: see `sources.rows`.
    """
    check_tasks(tasks)
    with sources.told(f"documents of {', '.join(tasks)}"):
        return f"{len(_manager_for(tasks).load(list(tasks))['tasks'])} tasks"


def _manager_for(tasks: dict[str, int]) -> TaskManager:
    return _task_manager(stock=not set(tasks) <= set(local_tasks()))


@functools.cache
def _lm_eval_names() -> set[str]:
    folder = Path(lm_eval.__file__).parent / "tasks"
    return {name for path in folder.rglob("*.y*ml") for name in _NAMES.findall(path.read_text("utf-8"))}


@functools.cache
def _task_manager(*, stock: bool) -> TaskManager:
    """Index of our tasks, and of lm-eval's own where they are needed; made once, as theirs takes long."""
    return TaskManager(include_path=str(TASKS), include_defaults=stock)


class SharedContextLM(HFLM):
    """HFLM that reads a multiple-choice context once, not once per choice.

    Same log-likelihoods (up to rounding), about as many times faster as the context is longer than the choices.
    """

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        if any(key is None for key, _, _ in requests):  # rolling windows share nothing but their first token
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        groups: dict[tuple, list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        scores = [(0.0, False)] * len(requests)
        ordered = sorted(groups, key=lambda context: (-len(context), context))
        for start in tqdm(range(0, len(ordered), self.batch_size), desc="choices", disable=disable_tqdm or None):
            chunk = ordered[start : start + self.batch_size]
            indices = [groups[context] for context in chunk]
            choices = [[requests[i][2] for i in group] for group in indices]
            flat = (i for group in indices for i in group)
            for index, score in zip(flat, self._score_choices(chunk, choices), strict=True):
                scores[index] = score
        return scores

    @torch.inference_mode()
    def _score_choices(self, contexts, choices: list[list[list[int]]]) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of every choice, in order; contexts are cut on the left to the model's length."""
        room = self.max_length - max(len(choice) for group in choices for choice in group)
        ids, mask = _padded([list(context)[-room:] for context in contexts], side="left", device=self.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        owner = torch.tensor([row for row, group in enumerate(choices) for _ in group], device=self.device)
        flat = [choice for group in choices for choice in group]
        logits = output.logits[owner, -1:]
        if max(map(len, flat)) > 1:
            rest = self._logits_after(output.past_key_values, mask, owner, [choice[:-1] for choice in flat])
            logits = torch.cat([logits, rest], dim=1)
        return _choice_scores(logits, flat)

    def _logits_after(self, cache, mask, owner, heads: list[list[int]]) -> torch.Tensor:
        """Logits after each token of each choice but its last, on top of the contexts' cache."""
        ids, head_mask = _padded([head or [0] for head in heads], side="right", device=self.device)
        cache.batch_select_indices(owner)
        start = mask.sum(dim=1)[owner, None]
        return self.model(
            input_ids=ids,
            attention_mask=torch.cat([mask[owner], head_mask], dim=1),
            position_ids=start + torch.arange(ids.shape[1], device=self.device),
            past_key_values=cache,
            use_cache=True,
        ).logits


def _padded(rows: list[list[int]], *, side: str, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, longest), padded with token 0 on one side."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long, device=device)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, where] = torch.tensor(row, device=device)
        mask[index, where] = 1
    return ids, mask


def _choice_scores(logits: torch.Tensor, choices: list[list[int]]) -> list[tuple[float, bool]]:
    scores = []
    for row, choice in zip(logits, choices, strict=True):
        log_probs = torch.log_softmax(row[: len(choice)].float(), dim=-1)
        target = torch.tensor(choice, device=log_probs.device)
        total = log_probs.gather(1, target[:, None]).sum()
        scores.append((float(total), bool((log_probs.argmax(dim=-1) == target).all())))
    return scores


def evaluate(
    model: str | Path,
    *,
    adapter: Path | None = None,
    tasks: dict[str, int],
    shots: dict[str, int],
    chat_tasks: list[str],
    batch_size: int,
) -> dict[str, dict]:
    """Score a model on every task.

    Args:
        model: name or folder.
        adapter: a LoRA adapter to merge into it.
        tasks: number of documents by task, always the first ones, so that every model meets the same; 0 is all.
            For a group of tasks (mmlu) it counts in each of them.
        shots: few-shot examples by task; the task's own number where a task is not named.
        chat_tasks: the tasks that are asked in the model's chat format.

    Returns:
        by task: {metric, filter, value, stderr, n, limit, chance, shots, chat_template, version, higher_is_better,
        all, documents}, where `documents` holds one value each, or a pair (nats, words) for perplexities.
    """
    check_tasks(tasks)
    return score(
        *models.load(model, adapter=adapter), tasks=tasks, shots=shots, chat_tasks=chat_tasks, batch_size=batch_size
    )


def score(model, tokenizer, *, tasks: dict, shots: dict, chat_tasks: list, batch_size: int) -> dict[str, dict]:
    """`evaluate` for a model that is loaded."""
    manager = _manager_for(tasks)
    # Whether a text starts with a BOS token is the tokenizer's to say: Llama's adds one, SmolLM2's does not.
    wrapped = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device))
    return {
        task: _score(wrapped, manager, task=task, limit=limit, shots=shots.get(task), chat=task in chat_tasks)
        for task, limit in tasks.items()
    }


def _score(wrapped: HFLM, manager: TaskManager, *, task: str, limit: int, shots: int | None, chat: bool) -> dict:
    results = lm_eval.simple_evaluate(
        wrapped,
        tasks=[task],
        limit=limit or None,
        num_fewshot=shots,
        apply_chat_template=chat,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
        verbosity="ERROR",
    )
    values = {key: value for key, value in results["results"][task].items() if "," in key and "stderr" not in key}
    metric, filter_ = _primary(task, values)
    leaves = list(results["samples"])  # the task itself, or the tasks of a group
    samples = [s for leaf in leaves for s in results["samples"][leaf] if s["filter"] == filter_]
    documents = [sample[metric] for sample in samples]
    choice = results["configs"][leaves[0]]["output_type"] == "multiple_choice"
    found = {
        "metric": metric,
        "filter": filter_,
        **_estimate(documents),
        "n": len(documents),
        "limit": limit,
        "chance": float(np.mean([1 / len(sample["resps"]) for sample in samples])) if choice else 0.0,
        "shots": results["n-shot"][leaves[0]],
        "chat_template": chat,
        "version": str(results["versions"][leaves[0]]),
        "higher_is_better": True,
        "all": values,
        "documents": documents,
    }
    if metric == "word_perplexity":
        found |= {"metric": "nll_per_word", "higher_is_better": False, "documents": [[-ll, n] for ll, n in documents]}
        found |= _ratio_estimate(found["documents"])
    return found


def _primary(task: str, values: dict) -> tuple[str, str]:
    keys = [tuple(key.split(",", 1)) for key in values]
    filters = (_LEADERBOARD_FILTERS[task],) if task in _LEADERBOARD_FILTERS else _PREFERRED_FILTERS
    ranked = [(m, f) for m in _PREFERRED for f in filters if (m, f) in keys]
    return ranked[0] if ranked else keys[0]


def _estimate(documents: list) -> dict:
    """Mean and its standard error; a perplexity's pairs are left to `_ratio_estimate`."""
    if isinstance(documents[0], list | tuple):
        return {}
    values = np.asarray(documents, dtype=float)
    spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"value": float(values.mean()), "stderr": spread}


def _ratio_estimate(pairs: list) -> dict:
    """Nats per word over all documents, with the linearised standard error of a ratio of sums."""
    nats, words = np.asarray(pairs, dtype=float).T
    value = nats.sum() / words.sum()
    residuals = nats - value * words
    n = len(pairs)
    spread = math.sqrt(n / max(n - 1, 1) * float((residuals**2).sum())) / words.sum()
    return {"value": float(value), "stderr": float(spread)}
