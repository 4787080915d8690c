"""What is wrong with a study's data, tasks and encoder is told before any work, not by the job that needs them.

What takes seconds to import is imported only where a study has something of its own.
"""

from sdd_utils.data import sources
from sdd_utils.data.rows import load_rows
from sdd_utils.study.schema import Study
from sdd_utils.sweep import token_lengths


def check_data(study: Study) -> None:
    """Read a user's files, and raise an error, in one sentence, where they do not give the rows that are asked for.

    Raises:
        ValueError, FileNotFoundError: see `rows.load_rows`.
    """
    rule = {"own_data": study.own_data, "max_response_words": study.max_response_words}
    for name, keys in study.own_data.items():
        if not sources.local_file(sources.own_source(name, keys), name=name):
            continue  # the hub is asked by `prefetch`, or by the job
        load_rows(name, split="train", rows=study.data_sets.get(name, 0), **rule)
        if name in study.data_sets:
            load_rows(name, split="test", rows=study.answer_prompts, **rule)


def check_model(study: Study) -> None:
    """Find the model's configuration, on the hub if need be, and count it at every block size of the study.

    Raises:
        ValueError, FileNotFoundError: it is nowhere, or cannot be cut so; in one sentence.
    """
    from sdd_utils.sweep import plan

    plan.cost_model(study, hardware=None)


def check_tasks(study: Study) -> None:
    """Raise ValueError, in one sentence, for a task that cannot be scored; those that were measured can."""
    own = {task: limit for task, limit in study.tasks.items() if task not in token_lengths.lengths()["tasks"]}
    if own:
        from sdd_utils.steps import evaluation

        evaluation.check_tasks(own)


def check_quantization(study: Study) -> None:
    """Raise ValueError, in one sentence, where the study needs a library that is not installed."""
    if study.quantization:
        from sdd_utils.steps import quantization

        quantization.check_library()


def check_encoder(study: Study) -> None:
    """Find the sentence encoder, on the hub if need be. Raises FileNotFoundError, in one sentence."""
    from sdd_utils.steps import answer_similarity

    answer_similarity.encoder_path(study.encoder)
