"""Two data sets that are made on the spot, without a download.

gsm_symbolic
    Grade-school word problems with worked answers, from the templates of GSM-Symbolic (Mirzadeh et al.,
    arXiv 2410.05229) as implemented by reasoning-gym. A problem is left out where the question or the worked
    answer is longer than 60 words, the answer is negative (the story then makes no sense) or not the last
    line of the worked answer, or the question came before. Train and test share the templates, never a
    problem.
pydoc
    What a name of Python's standard library does, answered by its own docstring. `pydoc_names.txt` fixes the
    names and their order: public functions, classes and methods whose cleaned docstring (6 to 60 words) is
    the same text in Python 3.11, 3.12 and 3.13, starts with a capital, ends a sentence and holds no markup;
    one name per text, at most 20 names per top-level module, no module of one platform, shuffled once with
    seed 0. Every fifth name is a test row.
"""

import functools
import inspect
import pkgutil
import re
from pathlib import Path

MAX_WORDS = 60  # of a question, a worked answer or a docstring: short enough to train on a laptop
MIN_DOC_WORDS = 6  # a shorter docstring only repeats the name

# reasoning-gym seeds item i with seed + i, so the two pools must lie further apart than their sizes.
GSM_SEED = {"train": 0, "test": 1_000_000}
GSM_CANDIDATES = {"train": 6000, "test": 2000}
GSM_SUFFIX = " Give the result as your final answer. Do not include units."

PYDOC_NAMES = Path(__file__).with_name("pydoc_names.txt")
PYDOC_TEST_EVERY = 5


@functools.cache
def _gsm_symbolic(split: str) -> list[dict]:
    """The candidates of a split that pass the fixed rules, in candidate order."""
    seen = {question for question, _, _ in _gsm_candidates("train")} if split == "test" else set()
    rows = []
    for index, (question, response, answer) in enumerate(_gsm_candidates(split)):
        short = max(len(question.split()), len(response.split())) <= MAX_WORDS
        sound = response.endswith(f"#### {answer}") and not answer.startswith("-")
        if short and sound and question not in seen:
            rows.append(_row(f"gsm_symbolic-{split}-{index:05d}", question, response, answer))
        seen.add(question)
    return rows


@functools.cache
def _gsm_candidates(split: str) -> list[tuple[str, str, str]]:
    """Question, worked answer (ending in "#### " and the number) and answer of every candidate of a split."""
    import reasoning_gym  # here, for its import takes longer than everything else in this module

    size = GSM_CANDIDATES[split]
    problems = reasoning_gym.create_dataset("gsm_symbolic", seed=GSM_SEED[split], size=size)
    return [_tidy(problems[index]) for index in range(size)]


def _tidy(problem: dict) -> tuple[str, str, str]:
    """Question without the appended instruction, worked answer and answer, white space collapsed."""
    question = " ".join(problem["question"].removesuffix(GSM_SUFFIX).split())
    lines = problem["metadata"]["answer_cot"].strip().splitlines()
    return question, "\n".join(" ".join(line.split()) for line in lines), problem["answer"]


@functools.cache
def _pydoc(split: str) -> list[dict]:
    """The names of a split that this Python documents, in the order of `pydoc_names.txt`."""
    rows, seen = [], set()
    for index, name in enumerate(PYDOC_NAMES.read_text(encoding="utf-8").split()):
        thing = _resolve(name)
        response = clean_docstring(getattr(thing, "__doc__", None) or "")
        if response is None or response in seen:
            continue
        seen.add(response)
        if (split == "test") == (index % PYDOC_TEST_EVERY == PYDOC_TEST_EVERY - 1):
            shown = name.removeprefix("builtins.")
            asks = f"What is the class {shown} for?" if inspect.isclass(thing) else f"What does {shown} do?"
            rows.append(_row(f"pydoc-{name}", asks, response, ""))
    return rows


def _resolve(name: str) -> object | None:
    """What a qualified name stands for, or None in a Python that lacks it."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


def clean_docstring(text: str) -> str | None:
    """The leading prose of a docstring as one line of `MIN_DOC_WORDS` to `MAX_WORDS` words, or None.

    Signature lines are dropped. The prose ends at the first paragraph that holds an indented line, a doctest
    or an underline, introduces something (it ends in a colon), or would exceed the limit.
    """
    words = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line for line in paragraph.splitlines() if not _is_signature(line)]
        more = " ".join(lines).split()
        code = any(line.startswith((" ", "\t")) or re.search(r">>>|^\W*--", line) for line in lines)
        if code or paragraph.rstrip().endswith(":") or len(words) + len(more) > MAX_WORDS:
            break
        words += more
    return " ".join(words) if len(words) >= MIN_DOC_WORDS else None


def _is_signature(line: str) -> bool:
    """Whether a line is `name(arguments)`, perhaps with what it returns, and not prose."""
    return bool(re.match(r"[\w.]+\(.*?\)( ?(->|--|=) ?.*)?$", line.strip()))


def _row(key: str, instruction: str, response: str, answer: str) -> dict:
    return {"id": key, "instruction": instruction, "context": "", "response": response, "answer": answer}


OFFLINE = {"gsm_symbolic": _gsm_symbolic, "pydoc": _pydoc}
