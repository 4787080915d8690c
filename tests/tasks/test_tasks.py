"""The offline lm-eval tasks: they load without network, ask the right thing, and read hostile answers."""

import math
import random

import pytest
from lm_eval.tasks import TaskManager

from sdd_utils.data.rows import load_rows
from sdd_utils.steps.evaluation import TASKS
from sdd_utils.tasks import builders, facts

NAMES = ["facts", "gsm_symbolic", "gsm_symbolic_gold", "gsm_symbolic_mc", "pydoc_gold"]
FROM_THE_HUB = ["gsm8k_gold"]


@pytest.fixture(scope="module")
def tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("socket.socket.connect", _no_network)
        return TaskManager(include_path=str(TASKS), include_defaults=False).load(NAMES)["tasks"]


@pytest.fixture(scope="module")
def filters(tasks):
    return {f.name: f for f in tasks["gsm_symbolic"]._filters}


@pytest.mark.parametrize(
    ("name", "documents"),
    [("facts", 400), *((f"gsm_symbolic{kind}", 200) for kind in ("", "_mc", "_gold")), ("pydoc_gold", 100)],
)
def test_tasks_load_offline_with_their_version(tasks, name, documents):
    task = tasks[name]
    assert len(task.eval_docs) >= documents
    assert task.VERSION == task.config.metadata["version"] == (1.1 if name == "gsm_symbolic" else 1.0)
    assert task.config.num_fewshot == 0
    assert {path.stem for path in TASKS.glob("*.yaml")} == {*NAMES, *FROM_THE_HUB}


def test_facts_asks_the_cloze(tasks):
    task, first = tasks["facts"], facts.questions()[0]
    document = task.eval_docs[0]
    assert document == first
    assert task.doc_to_text(document) == first["text"]
    assert task.doc_to_choice(document) == first["choices"]
    assert task.doc_to_target(document) == first["label"]
    _, pairs = _requests(task)
    assert [pair[1] for pair in pairs[:4]] == [f" {choice}" for choice in first["choices"]]


def test_gsm_symbolic_asks_the_held_out_problems(tasks):
    task, rows = tasks["gsm_symbolic"], load_rows("gsm_symbolic", split="test", rows=200)
    for document, row in zip(task.eval_docs, rows, strict=True):
        assert task.doc_to_text(document) == row["instruction"]
        assert task.doc_to_target(document) == row["answer"]
    settings = task.config.generation_kwargs
    assert settings["do_sample"] is False
    assert settings["max_gen_toks"] == 96
    assert "<|im_end|>" in settings["until"]


def test_gsm_choices_are_the_answer_among_near_misses(tasks):
    task, labels = tasks["gsm_symbolic_mc"], set()
    for document in task.eval_docs:
        choices, label = task.doc_to_choice(document), task.doc_to_target(document)
        assert task.doc_to_text(document) == document["instruction"] + "\nAnswer:"
        assert choices[label] == document["answer"]
        assert len({float(choice) for choice in choices}) == 4
        assert all(float(choice) > 0 and not choice.startswith("0") for choice in choices)
        assert sum(len(choice) == len(document["answer"]) for choice in choices) >= 3
        labels.add(label)
    assert labels == {0, 1, 2, 3}


@pytest.mark.parametrize("answer", ["0", "1", "2", "9", "10", "11", "99", "100", "1000", "9281.25"])
def test_near_misses_exist_for_any_answer(answer):
    row = {"id": "x", "answer": answer, "response": f"It is 3 = {answer}\n#### {answer}"}
    made = builders.near_misses(row, rng=random.Random(0))
    assert len({float(miss) for miss in made} | {float(answer)}) == 4
    assert made == builders.near_misses(row, rng=random.Random(0))


@pytest.mark.parametrize("name", ["pydoc", "gsm_symbolic"])
def test_gold_answers_are_scored_behind_their_question(tasks, name):
    task, row = tasks[f"{name}_gold"], load_rows(name, split="test", rows=1)[0]
    _, texts = _requests(task)
    assert texts[0] == (row["instruction"], row["response"])
    bits = task.process_results(row, [(-8 * math.log(2), False)])
    assert bits == {"gold_bits_per_byte": pytest.approx(8 / len(row["response"].encode()))}


# What each filter reads, and whether that counts for an answer of 1200.
@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("3 x 400 = 1200\n#### 1200", True, True),
        ("#### 1,200.", True, True),
        ("####1200", True, True),
        ("#### $1,200", True, True),
        ("#### 1200.00", True, True),
        ("#### 1200\n#### 7", True, False),
        ("#### 12000", False, False),
        ("#### -1200", False, False),
        ("#### 1200.5", False, False),
        ("The answer is $1,200.", False, True),
        ("The answer is **1200**...", False, True),
        ("It is 2400-1200", False, True),
        ("1200 is less than 5", False, False),
        ("#### none", False, False),
        ("####", False, False),
        ("...,,,$", False, False),
        ("", False, False),
    ],
)
def test_filters_on_hostile_answers(tasks, filters, text, strict, flexible):
    task = tasks["gsm_symbolic"]
    document = {**task.eval_docs[0], "answer": "1200"}
    for name, right in (("strict-match", strict), ("flexible-extract", flexible)):
        (found,) = _filtered(filters[name], text)
        assert task.process_results(document, [found])["exact_match"] == float(right), (name, found)


def test_a_decimal_answer_is_not_cut(tasks, filters):
    task = tasks["gsm_symbolic"]
    document = {**task.eval_docs[0], "answer": "9281.25"}
    (found,) = _filtered(filters["flexible-extract"], "It is £9,281.25.")
    assert task.process_results(document, [found])["exact_match"] == 1.0


def _no_network(*_):
    raise OSError("the tasks must load without network")


def _requests(task):
    """The first documents' requests and their arguments, as lm-eval builds them."""
    task.build_all_requests(limit=2, rank=0, world_size=1)
    return task.instances, [instance.args for instance in task.instances]


def _filtered(ensemble, text):
    """What a chain of filters makes of one response."""
    responses = [[text]]
    for step in ensemble.filters:
        responses = step().apply(responses, [{}])
    return list(responses)
