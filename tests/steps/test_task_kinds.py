"""Which of lm-eval's names can be scored document by document, told before anything is downloaded or scored."""

import re

import pytest
import yaml
from lm_eval.tasks import TaskManager

from sdd_utils.steps import evaluation, task_kinds

CHOICE, TEXT = {"output_type": "multiple_choice"}, {"output_type": "generate_until"}
MEAN, BLEU = {"metric": "acc", "aggregation": "mean"}, {"metric": "bleu"}
FILTERED = TEXT | {"filter_list": [{"name": "strict-match"}, {"name": "flexible-extract"}]}
TASKS = {
    "default": CHOICE,
    "default_text": TEXT,
    "default_rolling": {"output_type": "loglikelihood_rolling"},
    "default_likelihood": {"output_type": "loglikelihood"},
    "mean": CHOICE | {"metric_list": [MEAN]},
    "two": CHOICE | {"metric_list": [{"metric": "f1"}, MEAN]},
    "unknown_metric": TEXT | {"metric_list": [{"metric": "em"}]},
    "filtered": FILTERED | {"metric_list": [{"metric": "exact_match"}]},
    "tagged_a": CHOICE | {"tag": ["some_tag"]},
    "tagged_b": CHOICE | {"tag": "some_tag"},
    "correlation": CHOICE | {"metric_list": [{"metric": "mcc"}]},
    "corpus": TEXT | {"metric_list": [BLEU, {"metric": "exact_match", "aggregation": "bleu"}]},
    "only_perplexity": {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}]},
    "median": CHOICE | {"metric_list": [{"metric": "acc", "aggregation": "median"}]},
}
GROUPS = {
    "averaged": (["mean", "default"], [{"metric": "acc"}]),
    "averaged_tag": (["some_tag", {"task": "mean", "num_fewshot": 1}], {"metric": "acc_norm"}),
    "nested": (["averaged", {"group": "inside", "task": ["default"]}], [{"metric": "acc"}]),
    "bare": (["mean", "default"], None),
    "lacking": (["mean", "default"], [{"metric": "acc_norm"}]),
    "with_corpus": (["correlation", "correlation"], [{"metric": "mcc"}]),
    "foreign": (["mean", "default"], [{"metric": "brier_score"}]),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, settings in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | settings))
    for name, (members, averaged) in GROUPS.items():
        group = {"group": name, "task": members} | ({"aggregate_metric_list": averaged} if averaged else {})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))
    (folder / "utils.py").write_text("def total(items): return sum(items)\n")
    custom = (
        "task: custom\noutput_type: generate_until\nmetric_list:\n- {metric: em, aggregation: !function utils.total}\n"
    )
    (folder / "custom.yaml").write_text(custom)
    (folder / "program.yaml").write_text("task: program\nclass: !function utils.total\n")
    return TaskManager(include_path=str(folder), include_defaults=False).task_index


@pytest.mark.parametrize(
    "name",
    ["default", "default_text", "default_rolling", "default_likelihood", "only_perplexity", "mean",
     "two", "unknown_metric", "filtered",
     "tagged_a", "averaged", "nested"],
)  # fmt: skip
def test_tasks_and_groups_with_a_mean_over_documents_pass(index, name):
    task_kinds.check_kind(name, index)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "some_tag",
            "task 'some_tag' is a tag without a score of its own: name its tasks one by one, tagged_a, tagged_b",
        ),
        ("bare", "task 'bare' is a group without a score of its own: name its tasks one by one, mean, default"),
        ("foreign", "task 'foreign' is a group without a score of its own: name its tasks one by one, mean, default"),
        ("lacking", "task 'lacking' is a group averaged by acc_norm,none, which mean does not report: name"),
        ("averaged_tag", "task 'averaged_tag' is a group averaged by acc_norm,none, which mean does not report: name"),
        ("correlation", "task 'correlation' is scored by mcc over all documents at once"),
        ("with_corpus", "task 'correlation' is scored by mcc over all documents at once"),
        ("corpus", "task 'corpus' is scored by exact_match over all documents at once"),
        ("median", "task 'median' is scored by acc over all documents at once"),
        ("custom", "task 'custom' is scored by em over all documents at once"),
        ("program", "task 'program' is a program that may score all documents at once: use another task"),
    ],
)
def test_what_has_no_value_per_document_is_told(index, name, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        task_kinds.check_kind(name, index)
    assert "\n" not in str(error.value)


def test_the_metric_that_is_checked_is_the_one_that_is_taken_of_a_result():
    for keys, taken in (
        (["acc,none", "acc_norm,none"], ("acc_norm", "none")),
        (["exact_match,strict-match", "exact_match,flexible-extract"], ("exact_match", "flexible-extract")),
        (["em,none", "f1,none"], ("em", "none")),
    ):
        assert task_kinds.primary("some", keys) == taken
    both = ["exact_match,flexible-extract", "exact_match,strict-match"]
    for shots, filter_ in ((None, "strict-match"), (5, "strict-match"), (0, "flexible-extract")):
        assert task_kinds.primary("gsm8k", both, shots=shots)[1] == filter_


def test_the_names_of_lm_eval_are_told_apart():
    evaluation.check_tasks({"facts": 3, "arc_challenge": 5, "mmlu": 2, "gsm8k": 1, "truthfulqa_mc2": 1, "wikitext": 1})
    for name, said in {"ai2_arc": "tag", "glue": "tag", "wmt16": "tag", "leaderboard": "group", "cola": "mcc"}.items():
        with pytest.raises(ValueError, match=f"^task '{name}' is .*{said}"):
            evaluation.check_tasks({"facts": 1, name: 4})
