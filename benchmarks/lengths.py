"""Measure the token lengths that `make plan` estimates from; the output is `sdd_utils/sweep/token_lengths.yaml`.

Data sets and stock tasks come from the hub (HF_ENDPOINT and HF_HOME are respected), the offline ones out of this
package; every text is tokenised with one tokenizer, SmolLM2's. What the hub copy at hand does not hold in full, and
what cannot be measured before a study has run, is written down below with its source.
"""

import argparse
from statistics import fmean

import yaml
from lm_eval.tasks import TaskManager, get_task_dict

from sdd_utils.data.rows import data_set_names, load_rows
from sdd_utils.models import store
from sdd_utils.models.chat_format import render
from sdd_utils.steps import answer_check, distillation, finetuning
from sdd_utils.steps.evaluation import TASKS

# Full sizes of the hub's sets, or what `sdd_utils/data/sources.py` samples of them: a mirror may hold less.
SIZES = {"gsm8k": 7473, "dolly": 15011, "alpaca": 52002, "openmathinstruct2": 60_000, "c4": 2_000}
# name: shots of the OpenLLM Leaderboard v1, full size (documents that lm-eval scores), tasks it is made of
HUB_TASKS = {
    "arc_challenge": (25, 1172, 1),
    "arc_easy": (25, 2376, 1),
    "hellaswag": (10, 10042, 1),
    "mmlu": (5, 14042, 57),
    "winogrande": (5, 1267, 1),
    "truthfulqa_mc2": (0, 817, 1),
    "gsm8k": (5, 1319, 1),
    "gsm8k_gold": (0, 1319, 1),
    "mmlu_continuation": (0, 14042, 57),
}
# A set that the hub copy at hand lacks, assumed to be as long as OpenMathInstruct-2.
ALIKE = {"openmathinstruct1": ("openmathinstruct2", 60_000)}
# How much longer a rewrite is than the response. general: Alpaca's responses grew from 45 to 107 words in the parent
# method's released set (arXiv 2402.13669); maths: an assumption. 135M rewrites often run to their limit instead.
GROWTH = {"general": 2.4, "maths": 1.5}
KINDS = {"multiple_choice": "choice", "generate_until": "generate", "loglikelihood": "text"}
# Tokens of a generated answer. gsm_symbolic: the task's limit of 96, which small models run into.
# Assumption for gsm8k: an answer is as long as the reference solutions, which the data set's `response` measures.
DECODED = {"gsm8k": 128, "gsm_symbolic": 96}
HEAD = """\
# Made by `python benchmarks/lengths.py`: mean tokens by SmolLM2's tokenizer (49152 words; larger vocabularies need
# somewhat fewer). `rows` and `documents` are full sizes as published; `measured_on` says how many were tokenised.
# data_sets: prompt and response of a training row in chat format, and the prompt that asks for its rewrite.
# tasks: a document reads `read` + shots x `example` tokens, each distinct context once and every choice; `longest` is
# the longest context with one choice; `decode` is
# what a generated answer takes (gsm8k: assumed to be as long as the reference solutions). growth: see the script.
"""
ROWS, DOCUMENTS = 1000, 300  # tokenised at most, by data set and by task


def main() -> None:
    """Print the YAML file; with names, only those."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="data sets and tasks to measure (default all)")
    names = parser.parse_args().names
    tokenizer = store.load_tokenizer("smollm2-135m-instruct")
    sets = {
        name: measure_set(tokenizer, name)
        for name in data_set_names()
        if name not in ALIKE and (not names or name in names)
    }
    offline = sorted({path.stem for path in TASKS.glob("*.yaml")} - {*HUB_TASKS})
    tasks = {n: measure_task(tokenizer, n) for n in [*offline, *HUB_TASKS] if not names or n in names}
    print(as_text(sets, tasks))


def as_text(sets: dict, tasks: dict) -> str:
    """The YAML file: what was measured, and the assumptions beside it."""
    sets |= {name: sets[like] | {"rows": size, "like": like} for name, (like, size) in ALIKE.items() if like in sets}
    return HEAD + yaml.safe_dump({"data_sets": sets, "tasks": tasks, "growth": GROWTH}, sort_keys=False, width=120)


def measure_set(tokenizer, name: str) -> dict:
    """Full size and mean tokens of one row: prompt in chat format, response with its end, prompt of the rewrite."""
    every = load_rows(name, split="train", rows=0)
    rows = every[:ROWS]
    encoded = [finetuning.encode(tokenizer, row, row["response"]) for row in rows]
    rewrites = [render(tokenizer, distillation.rewrite_messages(row)) for row in rows]
    size, maths = SIZES.get(name, len(every)), answer_check.check_of(rows[0]) in ("number", "boxed")
    return {
        "rows": size,
        "maths": maths,
        "prompt": _mean(len(e["input_ids"]) - sum(e["completion_mask"]) for e in encoded),
        "response": _mean(sum(e["completion_mask"]) for e in encoded),
        "rewrite_prompt": _mean(_count(tokenizer, rewrites)),
        "measured_on": len(rows),
    }


def measure_task(tokenizer, name: str) -> dict:
    """Full size, default shots, and mean tokens of one document: zero-shot (`read`) and per few-shot example.

    A multiple-choice document reads each distinct context once, and every choice.
    """
    manager = TaskManager(include_path=str(TASKS), include_defaults=name in HUB_TASKS)
    parts = _flat(get_task_dict([name], manager))
    shots, size, count = HUB_TASKS.get(name, (0, len(list(parts[0].eval_docs)), 1))
    kind, default = KINDS[parts[0].OUTPUT_TYPE], parts[0].config.num_fewshot or 0
    read, requests, documents = _tokens(tokenizer, parts, shots=0)
    example = (_tokens(tokenizer, parts, shots=shots)[0] - read) / shots if shots else 0.0
    found = {"documents": size, "parts": count, "kind": kind, "default_shots": default, "read": round(read, 1)}
    found |= {"example": round(example, 1), "requests": round(requests, 1), "longest": _longest(tokenizer, parts)}
    if kind == "generate":
        found["decode"] = DECODED.get(name) or parts[0].config.generation_kwargs["max_gen_toks"]
    return found | {"measured_on": documents, "measured_shots": shots}


def _flat(found: dict) -> list:
    return [task for value in found.values() for task in (_flat(value) if isinstance(value, dict) else [value])]


def _tokens(tokenizer, parts: list, *, shots: int) -> tuple[float, float, int]:
    """Mean tokens and requests per document, parts weighted by size, and how many documents were tokenised."""
    means, requests, sizes, documents = [], [], [], 0
    for task in parts:
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests(limit=max(20, DOCUMENTS // len(parts)), rank=0, world_size=1)
        contexts = {(i.doc_id, i.args[0]) for i in task.instances}
        texts = [text for _, text in sorted(contexts)]
        texts += [i.args[1] for i in task.instances if task.OUTPUT_TYPE != "generate_until"]
        read = len({i.doc_id for i in task.instances})
        means.append(sum(_count(tokenizer, texts)) / read)
        requests.append(len(task.instances) / read)
        sizes.append(len(list(task.eval_docs)))
        documents += read
    return fmean(means, weights=sizes), fmean(requests, weights=sizes), documents


def _longest(tokenizer, parts: list) -> int:
    """Tokens of the longest context with one choice, without examples."""
    for task in parts:
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=max(20, DOCUMENTS // len(parts)), rank=0, world_size=1)
    texts = [[text for text in i.args if isinstance(text, str)] for task in parts for i in task.instances]
    return max(sum(_count(tokenizer, pair)) for pair in texts)


def _count(tokenizer, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _mean(values) -> float:
    return round(fmean(values), 1)


if __name__ == "__main__":
    main()
