"""Score a model with lm-eval: stock tasks, and the offline ones under `sdd_utils/tasks/`.

Every score says its metric, filter, shots, template, task version, number of documents and standard error, and
keeps each document's value, so that models can be compared document by document.
"""

import functools
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import lm_eval
import numpy as np
import torch
from lm_eval.tasks import TaskManager

from sdd_utils import tasks as task_files
from sdd_utils.base import precision
from sdd_utils.base.files import digest, file_sha256, keep_rows
from sdd_utils.base.import_graph import files_behind
from sdd_utils.data import source_rows
from sdd_utils.engine import generation, vllm_client, vllm_installed
from sdd_utils.engine.generation import ADAPTER_WEIGHTS
from sdd_utils.engine.lm_eval_model import SharedContextLM
from sdd_utils.models import store
from sdd_utils.steps import task_kinds

TASKS = Path(task_files.__file__).parent


def local_tasks() -> list[str]:
    """Names of the tasks that need no network."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def check_tasks(tasks: dict[str, int]) -> None:
    """Raise ValueError, in one sentence, if a name is no task, or has no score with a value per document.

    lm-eval's index, which settles it, takes a quarter of a minute where a task is not ours; it is made once.
    """
    index = _manager_for(tasks).task_index
    for task in tasks:
        if task not in index:
            allowed = f"one of {', '.join(local_tasks())}, or a task of lm-eval ('lm-eval ls tasks' lists them)"
            raise ValueError(f"task {task!r} is unknown: use {allowed} (study key tasks)")
        task_kinds.check_kind(task, index)


def fetch(tasks: dict[str, int]) -> str:
    """Download the documents of the tasks that are not ours; says how many tasks there are, groups unfolded.

    Raises:
        ValueError: an unknown task.
        FileNotFoundError, OSError: see `source_rows.source_rows`.
    """
    check_tasks(tasks)
    with source_rows.explain_data_errors(f"documents of {', '.join(tasks)}"):
        return f"{len(_manager_for(tasks).load(list(tasks))['tasks'])} tasks"


def _manager_for(tasks: dict[str, int]) -> TaskManager:
    return _task_manager(stock=not set(tasks) <= set(local_tasks()))


@functools.cache
def _task_manager(*, stock: bool) -> TaskManager:
    """Index of our tasks, and of lm-eval's own where they are needed; made once, as theirs takes long."""
    return TaskManager(include_path=str(TASKS), include_defaults=stock)


def evaluate_model(
    model: str | Path,
    *,
    adapter: Path | None = None,
    dtype: torch.dtype | None = None,
    tasks: dict[str, int],
    shots: dict[str, int],
    chat_tasks: list[str],
    batch_size: int,
    path: Path | None = None,
) -> dict[str, dict]:
    """Score a model on every task; the model is loaded only if a score is missing from the file.

    Args:
        model: name or folder.
        adapter: a LoRA adapter beside its weights.
        dtype: compute dtype, by default `precision.compute_dtype()`.
        tasks: number of documents by task, always the first ones, so that every model meets the same; 0 is all.
            For a group of tasks (mmlu) it counts in each of them.
        shots: few-shot examples by task; the task's own number where a task is not named.
        chat_tasks: the tasks that are asked in the model's chat format.
        path: a file of JSON lines that only ever grows, a task per line: what was scored before a kill is read.

    Returns:
        by task: {metric, filter, value, stderr, n, limit, chance, shots, chat_template, version, engine,
        higher_is_better, all, documents}, where `documents` holds one value each, or a pair (nats, words) for a
        perplexity, and `engine` says what computed it.
    """
    check_tasks(tasks)
    by_vllm, settings = _for_vllm(tasks), {"shots": shots, "chat_tasks": chat_tasks}

    def make(missing: list[str]) -> Iterator[dict]:
        theirs, ours = ({task: tasks[task] for task in missing if (task in by_vllm) == vllm} for vllm in (True, False))
        if theirs:
            scores = _score_by_vllm(model, adapter=adapter, dtype=dtype, tasks=theirs, **settings)
            yield from ({"id": task, "score": score} for task, score in scores.items())
        if ours:
            loaded = store.load_model(model, adapter=adapter, dtype=dtype)
            for task, score in score_loaded_model(*loaded, tasks=ours, batch_size=batch_size, **settings):
                yield {"id": task, "score": score}

    rows = make([*tasks])
    if path:
        weights = [_identity(store.find_model(str(model))), adapter and file_sha256(adapter / ADAPTER_WEIGHTS)]
        shared = [_code(), weights, str(dtype or precision.compute_dtype())]
        asked = {task: [limit, shots.get(task), task in chat_tasks, task in by_vllm] for task, limit in tasks.items()}
        keys = {task: digest(task, asked[task], batch_size, shared) for task in tasks}
        rows = keep_rows(path, keys, make=make)
    scores = {row["id"]: row["score"] for row in rows}
    return {task: scores[task] for task in tasks}


def _code() -> list:
    """What else decides a score: the project's code and task files, versions, precision."""
    own = [file_sha256(file) for file in files_behind([__name__])]
    return [own, generation.TRANSFORMERS, generation.engine(), version("lm-eval"), precision.dtype_name()]


def _identity(folder: Path) -> list:
    """What a model is: its weights, and what lies beside them: configuration, tokenizer, chat template."""
    beside = [path for pattern in ("*.json", "*.jinja", "*.model") for path in sorted(folder.glob(pattern))]
    return [store.identity(folder), [file_sha256(path) for path in beside if path.name != "manifest.json"]]


def _for_vllm(tasks: dict[str, int]) -> dict[str, int]:
    """The tasks that vLLM scores where it is installed: those that generate, and all of them on several GPUs.

    It reads a context once per choice, where `SharedContextLM` reads it once; but it may spread a model over GPUs.
    """
    if not vllm_installed.available():
        return {}
    if torch.cuda.device_count() > 1:
        return tasks
    index = _manager_for(tasks).task_index
    return {task: n for task, n in tasks.items() if index[task].cfg.get("output_type") == "generate_until"}


def _score_by_vllm(model: str | Path, *, tasks: dict, **settings) -> dict[str, dict]:
    results = vllm_client.evaluate(model, tasks=tasks, **settings)
    asked_for = {task: {"limit": limit, "chat": task in settings["chat_tasks"]} for task, limit in tasks.items()}
    return {
        task: _task_score(results[task], task=task, engine=generation.engine(), **asked_for[task]) for task in tasks
    }


def score_loaded_model(
    model, tokenizer, *, tasks: dict, shots: dict, chat_tasks: list, batch_size: int
) -> Iterator[tuple[str, dict]]:
    """(task, score) of a model that is loaded, by transformers, as each is done; see `evaluate_model`."""
    manager = _manager_for(tasks)
    # Whether a text starts with a BOS token is the tokenizer's to say: Llama's adds one, SmolLM2's does not. In the
    # chat format it is the template's.
    wrapped = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device))
    for task, limit in tasks.items():
        chat = task in chat_tasks
        wrapped.add_bos_token = False if chat else None
        # After every call lm-eval would ask pip for all packages; records name the versions themselves.
        with mock.patch("lm_eval.evaluator.add_env_info"):
            results = lm_eval.simple_evaluate(
                wrapped,
                tasks=[task],
                limit=limit or None,
                num_fewshot=shots.get(task),
                apply_chat_template=chat,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=True,
                verbosity="ERROR",
            )
        yield task, _task_score(results, task=task, limit=limit, chat=chat, engine=generation.TRANSFORMERS)


_OF_HUNDRED = ("bleu", "chrf", "ter", "rouge")  # these run to 100 and stand beside the average of scores in 0..1


def _task_score(results: dict, *, task: str, limit: int, chat: bool, engine: str) -> dict:
    """One task's score from what `lm_eval.simple_evaluate` returned."""
    values = {key: value for key, value in results["results"][task].items() if "," in key and "stderr" not in key}
    metric, filter_ = task_kinds.primary(task, list(values))
    leaves = list(results["samples"])  # the task itself, or the tasks of a group
    samples = [sample for leaf in leaves for sample in results["samples"][leaf] if sample["filter"] == filter_]
    documents = [sample[metric] for sample in samples]
    rising = results["higher_is_better"][leaves[0]].get(metric) and not metric.startswith(_OF_HUNDRED)
    choice = results["configs"][leaves[0]]["output_type"] == "multiple_choice"
    score = {
        "metric": metric,
        "filter": filter_,
        **_estimate(documents),
        "n": len(documents),
        "limit": limit,
        "chance": _chance(samples, documents) if choice else 0.0,
        "shots": results["n-shot"][leaves[0]],
        "chat_template": chat,
        "version": str(results["versions"][leaves[0]]),
        "engine": engine,
        "higher_is_better": bool(rising),
        "all": values,
        "documents": documents,
    }
    return score | _nll_per_word(documents) if metric == "word_perplexity" else score


def _nll_per_word(documents: list) -> dict:
    """What changes in a score when a perplexity, per document (log-likelihood, words), becomes nats per word."""
    pairs = [[-log_likelihood, words] for log_likelihood, words in documents]
    return {"metric": "nll_per_word", "higher_is_better": False, "documents": pairs} | _ratio_estimate(pairs)


def _chance(samples: list[dict], documents: list) -> float:
    """The score of guessing; 0 where several choices are right (TruthfulQA mc2), as guessing has no one score there."""
    return float(np.mean([1 / len(sample["resps"]) for sample in samples])) if set(documents) <= {0, 1} else 0.0


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
