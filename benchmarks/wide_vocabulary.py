"""Peak memory of each step for a random model of the size of Gemma 3 270M, whose vocabulary has 262144 words.

    python -m benchmarks.wide_vocabulary          # some minutes; writes benchmarks/wide_vocabulary.json

Every step calls what its notebook calls, in a process of its own and on a few rows, with the texts and the tokenizer of
the embedded study. `tests/sweep/test_memory.py` compares the plan with the numbers.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from sdd_utils import ROOT
from sdd_utils.base.provenance import process_provenance
from sdd_utils.data.rows import load_rows, question_of, text_of
from sdd_utils.engine import generation
from sdd_utils.models import chat_format, store
from sdd_utils.steps import distillation, evaluation, fidelity, finetuning, merging, pruning, similarity
from sdd_utils.sweep.run_notebook import KEEP_MEMORY

OUT = Path(__file__).with_suffix(".json")
SIZE = {"vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "head_dim": 256}
SIZE |= {"num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512, "query_pre_attn_scalar": 256}
TASKS = {"facts": 32, "gsm_symbolic": 3, "gsm_symbolic_mc": 16, "pydoc_gold": 16}
# What of a study's keys the steps below are run with.
STUDY = {"data_sets": {"gsm_symbolic": 48, "pydoc": 48}, "tasks": TASKS, "rewrite_tokens": 32, "answer_prompts": 12}
STUDY |= {"answer_tokens": 48, "generation_batch": 64, "arms": ["sft", "self_data_ft"], "block_sizes": [4]}
SCORING = {"tasks": TASKS, "shots": {}, "chat_tasks": ["gsm_symbolic"], "batch_size": 16}
SAMPLING = {"temperature": 0.95, "top_p": 0.7, "top_k": 50, "seed": 0, "batch_size": 64}
TRAINING = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_targets": "all-linear", "epochs": 1}
TRAINING |= {"learning_rate": 5e-4, "batch_size": 4, "seed": 0, "trained_tokens": 0}
ARMS = ("a", "b")


def build(folder: Path) -> None:
    """The random model, with a real tokenizer: its words are the first of the vocabulary."""
    tokenizer = store.load_tokenizer("smollm2-135m-instruct")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.Gemma3TextConfig(**SIZE, **ids))
    for parameter in model.parameters():  # not buffers, as rotary frequencies stay in float32
        parameter.data = parameter.data.to(torch.bfloat16)
    store.save_model(model, tokenizer, folder=folder / "original", parent="random", recipe={})


def answered(model: Path, path: Path, **more) -> list[dict]:
    """Greedy answers of a model to held-out questions."""
    rows = load_rows("gsm_symbolic", split="test", rows=STUDY["answer_prompts"])
    settings = {"max_new_tokens": STUDY["answer_tokens"], **SAMPLING, **more}
    return fidelity.answer_questions(model, {r["id"]: question_of(r) for r in rows}, path=path, **settings)["greedy"]


def measure_similarity(run: Path) -> None:
    model, tokenizer = store.load_model(run / "original")
    texts = [text_of(row) for name in STUDY["data_sets"] for row in load_rows(name, split="train", rows=16)]
    similarity.measure_similarity(model, tokenizer, texts, batch_size=16, max_length=256)


def measure_pruning(run: Path) -> None:
    model, tokenizer = store.load_model(run / "original")
    pruning.remove_block(model, start=6, block_size=4)
    store.save_model(model, tokenizer, folder=run / "n4", parent="original", recipe={})
    evaluation.evaluate_model(run / "n4", **SCORING)
    answers = {"gsm_symbolic": answered(run / "original", run / "answers.jsonl")}
    model, tokenizer = store.load_model(run / "n4")
    original, _ = store.load_model(run / "original")
    fidelity.measure_fidelity(original, model, tokenizer, answers)


def measure_distillation(run: Path) -> None:
    rows = load_rows("gsm_symbolic", split="train", rows=48)
    tokenizer = store.load_tokenizer(run / "original")
    prompts = {row["id"]: chat_format.render(tokenizer, distillation.rewrite_messages(row)) for row in rows}
    settings = {"max_new_tokens": STUDY["rewrite_tokens"], **SAMPLING}
    texts = generation.generate_file(run / "original", prompts, path=run / "texts.jsonl", **settings)
    sets = {"rewrites": [text["text"] for text in texts[:4]]}
    fidelity.response_nll(run / "original", rows[:4], sets, path=run / "likelihoods.jsonl")


def measure_finetuning(run: Path) -> None:
    rows = load_rows("gsm_symbolic", split="train", rows=8)
    tokenizer = store.load_tokenizer(run / "n4")
    data = finetuning.paired_sets(tokenizer, rows, {}, arms=["sft"], max_length=256)["sft"]
    for arm in ARMS:
        finetuning.finetune(run / "n4", data, adapter=run / arm, **TRAINING)
    for arm in ARMS:
        evaluation.evaluate_model(run / "n4", adapter=run / arm, **SCORING)
    answers = {"gsm_symbolic": answered(run / "original", run / "answers.jsonl")}  # they are there already
    original, _ = store.load_model(run / "original")
    for arm in ARMS:
        model, _ = store.load_model(run / "n4", adapter=run / arm)
        fidelity.measure_fidelity(original, model, tokenizer, answers)


def measure_merging(run: Path) -> None:
    for arm in ARMS:
        merging.write_parent(run / "n4", run / arm, out=run / f"parent-{arm}")
    merging.merge_checkpoints(*(run / f"parent-{arm}" for arm in ARMS), out=run / "slerp", t=0.5)
    evaluation.evaluate_model(run / "slerp", dtype=torch.float32, **SCORING)


def measure_embedding_similarity(run: Path) -> None:
    for arm in ARMS:
        answered(run / "n4", run / f"answers-{arm}.jsonl", adapter=run / arm)


STEPS = {name.removeprefix("measure_"): step for name, step in globals().items() if name.startswith("measure_")}


def main() -> None:
    """Measure every step, the ones that need another's files behind it, and write the record."""
    peaks, environment = {}, os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as run:
        for step in ["build", *STEPS]:
            command = [sys.executable, "-m", "benchmarks.wide_vocabulary", step, run]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
            if step in STEPS:
                peaks[step] = json.loads((Path(run) / f"{step}.json").read_text())["peak_rss_mb"]
                print(step, peaks[step], flush=True)
    record = {"model": SIZE, "study": STUDY, "peak_rss_mb": peaks, "provenance": process_provenance(seed=0)}
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        step, run = sys.argv[1], Path(sys.argv[2])
        {"build": build, **STEPS}[step](run)
        (run / f"{step}.json").write_text(json.dumps(process_provenance(seed=0)))
