"""Score a model with lm-eval: stock tasks, and the project's own under `sdd_utils/tasks/`.

Every score says its metric, filter, shots, template, task version and number of documents. Each of its measures keeps
every document's value, so that models can be compared document by document.
"""

import functools
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from lm_eval.tasks import TaskManager

from sdd_utils import tasks as task_files
from sdd_utils.base import precision
from sdd_utils.base.choices import choice_probability, gold_bits_per_byte, margin, packed
from sdd_utils.base.files import digest, file_sha256, keep_rows
from sdd_utils.base.import_graph import code_digest
from sdd_utils.data import source_rows
from sdd_utils.engine import generation, vllm_client, vllm_installed
from sdd_utils.engine.generation import ADAPTER_WEIGHTS
from sdd_utils.engine.lm_eval_model import SharedContextLM
from sdd_utils.engine.lm_eval_task import evaluate_task
from sdd_utils.models import store
from sdd_utils.steps import task_kinds

TASKS = Path(task_files.__file__).parent


def local_tasks() -> list[str]:
    """Names of the project's own tasks."""
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
        by task: {metric, filter, n, limit, chance, shots, chat_template, version, engine, all} and, as far as the task
        allows, accuracy, choice_probability, gold_bits_per_byte, margin and choices, see `base.records.Score`.
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
    return [
        code_digest([__name__]),
        generation.TRANSFORMERS,
        generation.engine(),
        version("lm-eval"),
        precision.dtype_name(),
    ]


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
        results = evaluate_task(wrapped, task, manager=manager, limit=limit, shots=shots.get(task), chat=chat)
        yield task, _task_score(results, task=task, limit=limit, chat=chat, engine=generation.TRANSFORMERS)


_OF_HUNDRED = ("bleu", "chrf", "ter", "rouge")  # these run to 100, so they are no accuracy of 0..1


def _task_score(results: dict, *, task: str, limit: int, chat: bool, engine: str) -> dict:
    """One task's score from what `lm_eval_task.evaluate_task` returned."""
    values = {key: value for key, value in results["results"][task].items() if "," in key and "stderr" not in key}
    leaves = list(results["samples"])  # the task itself, or the tasks of a group
    shots = results["n-shot"][leaves[0]]
    metric, filter_ = task_kinds.primary(task, list(values), shots=shots)
    samples = [sample for leaf in leaves for sample in results["samples"][leaf] if sample["filter"] == filter_]
    rising = results["higher_is_better"][leaves[0]].get(metric) and not metric.startswith(_OF_HUNDRED)
    return {
        "metric": metric,
        "filter": filter_,
        "n": len(samples),
        "limit": limit,
        "chance": _chance(samples, metric),
        "shots": shots,
        "chat_template": chat,
        "version": str(results["versions"][leaves[0]]),
        "engine": engine,
        "all": values,
        **_measures(samples, metric, rising=bool(rising)),
    }


def _measures(samples: list[dict], metric: str, *, rising: bool) -> dict:
    """What a score measures per document, as far as its task allows, and the log-likelihoods behind it."""
    measures, choices = {}, [sample["choices"] for sample in samples]
    if metric not in task_kinds.LIKELIHOODS:
        measures["accuracy" if rising else "task_metric"] = _measured([sample[metric] for sample in samples])
    if not all(choices):
        return measures
    if all(choice["gold"] for choice in choices):
        measures["gold_bits_per_byte"] = _measured([gold_bits_per_byte(choice) for choice in choices])
        if all(len(choice["nats"]) > len(choice["gold"]) for choice in choices):
            measures["choice_probability"] = _measured([choice_probability(choice) for choice in choices])
            measures["margin"] = _measured([margin(choice) for choice in choices])
    return measures | {"choices": packed(choices)}


def _chance(samples: list[dict], metric: str) -> float:
    """The score of guessing among choices; 0 where texts are scored, or several are right (TruthfulQA mc2)."""
    choices = [sample["choices"] for sample in samples]
    if not all(choices) or not all(choice["gold"] for choice in choices) or metric in task_kinds.LIKELIHOODS:
        return 0.0
    return float(np.mean([len(choice["gold"]) / len(choice["nats"]) for choice in choices]))


def _measured(documents: list) -> dict:
    """Mean over documents and its standard error; one document has no spread to measure."""
    values = np.asarray(documents, dtype=float)
    spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"value": float(values.mean()), "stderr": spread, "documents": values.tolist()}
