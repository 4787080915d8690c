"""The plan counts the jobs that Snakemake counts, and what it estimates is what the committed study took, within 2x."""

import json
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sdd_utils import ROOT
from sdd_utils.base.records import NOTEBOOKS, of_step, read_records
from sdd_utils.models import architecture
from sdd_utils.study.jobs import study_jobs
from sdd_utils.study.schema import STUDIES, load_study
from sdd_utils.sweep import costs, memory, plan, token_lengths

RECORDS = ROOT / "results" / "embedded" / "records"
SMALL = {
    "model": "smollm2-135m-instruct", "data_sets": {"gsm_symbolic": 48, "pydoc": 48}, "calibration_rows": 32,
    "calibration_sets": ["gsm_symbolic", "pydoc"], "calibration_batch": 16, "block_sizes": [2, 4, 6],
    "finetune_block_sizes": [4, 6], "seeds": [0], "rewrite_tokens": 128, "rewrite_attempts": 1,
    "generation_batch": 64, "lora_rank": 16,
    "lora_targets": "all-linear", "epochs": 1, "batch_size": 4, "max_length": 256,
    "tasks": {"facts": 400, "gsm_symbolic_gold": 64, "pydoc_gold": 64}, "shots": {},
    "arms": ["sft", "self_data_ft"], "evaluation_batch": 16, "slerp_t": [0.0, 0.5, 1.0],
    "merge_pairs": [["gsm_symbolic", "pydoc"]], "scaling": {}, "capacities": {},
    "train_on_mixture": False, "answer_prompts": 12, "answer_tokens": 48, "selection": ["angular"], "speculation": {},
    "quantization": {},
}  # fmt: skip
# The keys in which the committed records of the embedded study differ.
COMMITTED = SMALL | {
    "data_sets": {"gsm_symbolic": 40, "pydoc": 40}, "block_sizes": [6], "finetune_block_sizes": [6],
    "seeds": [0, 1, 2], "rewrite_attempts": 3, "tasks": {"facts": 240, "gsm_symbolic_gold": 48, "pydoc_gold": 48},
}  # fmt: skip
PAPER = SMALL | {
    "model": "Llama-3.1-8B-Instruct", "calibration_rows": 128, "block_sizes": [2, 4, 6, 8, 10],
    "data_sets": {"gsm8k": 0, "dolly": 0, "alpaca": 0, "openmathinstruct1": 50000}, "calibration_sets": ["c4"],
    "finetune_block_sizes": [2, 4, 6, 8, 10], "rewrite_tokens": 512, "batch_size": 8, "max_length": 2048,
    "merge_pairs": [["alpaca", "openmathinstruct1"]], "answer_prompts": 256, "answer_tokens": 256,
    "shots": {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "winogrande": 5},
    "tasks": dict.fromkeys(["arc_challenge", "hellaswag", "mmlu", "winogrande", "truthfulqa_mc2", "gsm8k"], 0),
    "scaling": {"rows": [1000, 5000], "block_sizes": [6], "data_sets": ["alpaca"]},
}  # fmt: skip


def setting_of(values: dict, **changes):
    return plan.cost_model(SimpleNamespace(**values | changes), hardware=None)[0]


@pytest.fixture(scope="module")
def small():
    return setting_of(SMALL)


@pytest.fixture(scope="module")
def committed():
    return setting_of(COMMITTED)


@pytest.fixture(scope="module")
def paper():
    return setting_of(PAPER)


@pytest.fixture(scope="module")
def records():
    return read_records(RECORDS)


CAPACITIES = {
    "lora": [{"rank": 8, "alpha": 16, "targets": "q_proj,v_proj"}, {"rank": 64, "alpha": 64, "targets": "all-linear"}]
}
CAPACITIES |= {"block_sizes": [6], "data_sets": ["pydoc"]}
DRAFTS = {"draft_tokens": 4, "draft_prompts": 16}


@pytest.mark.parametrize(
    "changes",
    [
        {"speculation": DRAFTS, "quantization": {"formats": ["nf4"]}},
        {"capacities": CAPACITIES},
        {"selection": ["angular", "random"]},
        {"seeds": [0, 3], "block_sizes": [2, 4, 6, 8], "finetune_block_sizes": [4]},
    ],
)
def test_job_counts_are_the_dag(changes, tmp_path):
    """Of a whole study, run from nothing."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((STUDIES / "embedded.yaml").read_text()) | changes))
    study = load_study(str(path))
    command = [sys.executable, "-m", "snakemake", "-n", "--nolock", "--quiet", "rules"]
    command += ["--config", f"study={path}", f"run={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    counted = {step: int(count) for step, count in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M)}
    jobs = [job.step for job in study_jobs(study)]
    assert {step: jobs.count(step) for step in NOTEBOOKS} == {step: counted.get(step, 0) for step in NOTEBOOKS}


def test_every_committed_record_is_a_job(records):
    axes = ("block_size", "data_set", "other_data_set", "seed")
    jobs = [
        {"step": job.step} | {k: job.parameters[k] for k in axes if k in job.parameters}
        for job in study_jobs(SimpleNamespace(**COMMITTED))
    ]
    for record in records:
        params = {k: record["params"][k] for k in axes if k in record["params"]}
        params.pop("seed") if record["step"] in ("distillation", "pruning") else None  # of the sampling, no axis
        assert {"step": record["step"]} | params in jobs
    assert len(jobs) == len(records)


@pytest.mark.parametrize("step", [step for step in NOTEBOOKS if any(RECORDS.glob(f"{step}*.json"))])
def test_time_is_that_of_the_committed_study_within_a_factor_of_two(committed, records, step):
    row, own = plan.plan_rows(committed, [])[step], of_step(records, step)
    seconds = sum(record["provenance"]["wall_s"] for record in own)
    assert 0.5 < row.whole.seconds / seconds < 2


@pytest.mark.parametrize("data_set", ["gsm_symbolic", "pydoc"])
def test_tokens_are_those_of_the_committed_study_within_a_factor_of_two(committed, records, data_set):
    tuned = [r for r in of_step(records, "finetuning") if r["params"]["data_set"] == data_set]
    seen = sum(arm["training"]["seen_tokens"] for arm in tuned[0]["metrics"]["arms"].values())
    estimate = costs.finetuning(committed, block_size=6, data_set=data_set, rows=40)
    assert 0.5 < estimate.trained / seen < 2
    responses = sum(arm["training"]["trained_tokens"] for arm in tuned[0]["metrics"]["arms"].values())
    known = token_lengths.set_lengths(data_set)
    assert 0.5 < 40 * (known["response"] + token_lengths.rewritten(committed.study, data_set)) / responses < 2


def test_adapter_is_counted_as_peft_counts_it(model_folder):
    config, _ = architecture.find_config(str(model_folder))
    model = AutoModelForCausalLM.from_config(config)
    for targets in ("all-linear", "q_proj,v_proj"):
        chosen = targets if targets == "all-linear" else targets.split(",")
        wrapped = get_peft_model(model, LoraConfig(r=3, target_modules=chosen, task_type="CAUSAL_LM"))
        shape = architecture.shape_of(config, block_size=0, rank=3, targets=targets)
        assert shape.adapter == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        model = wrapped.unload()


def test_kv_cache_is_as_large_as_it_is(model):
    with torch.no_grad():
        cache = model(torch.arange(7)[None], use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert held == 7 * architecture.shape_of(model.config, block_size=0, rank=1, targets="all-linear").kv_width


def test_shipped_architectures_have_the_published_sizes():
    # n: Llama in billions of parameters; Mistral in billions, cut off
    sizes = {2: (7.594, 6.81), 4: (7.158, 6.37), 6: (6.722, 5.93), 8: (6.285, 5.50), 10: (5.849, 5.06)}
    llama, origin = architecture.find_config("meta-llama/Llama-3.1-8B-Instruct")
    mistral, _ = architecture.find_config("mistralai/Mistral-7B-Instruct-v0.3@some-revision")
    assert "shipped" in origin
    for n, (of_llama, of_mistral) in sizes.items():
        own, other = (architecture.shape_of(c, block_size=n, rank=16, targets="all-linear") for c in (llama, mistral))
        assert round(own.parameters / 1e9, 3) == of_llama
        assert 0 <= other.parameters / 1e9 - of_mistral < 0.01


def test_a_shipped_architecture_serves_where_its_gguf_file_is_not_here():
    qwen, _ = architecture.find_config("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    assert architecture.account(qwen).parameters == 494_032_768  # as published; the file holds 630,167,424
    gemma, _ = architecture.find_config("gemma3-270m")
    layer = 640 * (2 * 1024 + 2 * 256 + 3 * 2048) + 4 * 640 + 2 * 256  # attention, MLP and norms
    assert architecture.account(gemma).parameters == 18 * layer + 262_144 * 640 + 640 == 268_098_176


def test_llama_at_n_6_is_fine_tuned_in_80_gb(paper):
    lines = {what: size for what, _, size in memory.training(paper, 6)}
    assert lines["weights"] == 2 * 6_721_589_248
    # r x (in + out) of q, k, v, o, gate, up, down in 26 layers, 16 bytes each
    widths = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert lines["LoRA, gradients, Adam"] == 26 * 16 * widths * 16
    assert lines["LM head, in tiles"] == 2 * 4096 * 32768 * 2 + 8 * 2048 * 4096 * 4  # the logits alone would be 4.2 GB
    assert sum(lines.values()) < paper.machine.memory == 80e9
    assert "6,721,589,248 parameters x 2 bytes" in plan.memory_table(paper)


def test_paper_study_takes_days_not_minutes_of_one_gpu(paper):
    tuned = costs.finetuning(paper, block_size=6, data_set="alpaca", rows=52002)
    assert 0.5 < tuned.seconds / 3600 < 24
    rows = plan.plan_rows(paper, [])
    assert rows["finetuning"].jobs == 5 * 4 + 2
    assert rows["merging"].jobs == 5
    assert 24 < sum(row.whole.seconds for row in rows.values()) / 3600 < 24 * 14
    assert rows["finetuning"].whole.trained > 10 * rows["distillation"].whole.generated / 4


def test_done_jobs_are_told_by_what_the_records_say(small):
    tuned = {"block_size": 4, "data_set": "pydoc", "seed": 0, "train_rows": 48, "lora_rank": 16}
    found = [
        {"step": "similarity", "params": {"model": SMALL["model"]}},
        {"step": "finetuning", "params": tuned},
        {"step": "finetuning", "params": tuned | {"block_size": 6, "lora_rank": 8}},  # of another study key
        {"step": "finetuning", "params": tuned | {"seed": 7}},  # of no job
    ]
    rows = plan.plan_rows(small, found)
    assert {step: row.done for step, row in rows.items() if row.done} == {"similarity": 1, "finetuning": 1}
    assert rows["similarity"].left.seconds == 0
    assert rows["finetuning"].left.seconds == pytest.approx(rows["finetuning"].whole.seconds * 3 / 4, rel=0.2)


def test_other_rows_and_other_answer_sets_are_jobs_to_run_again():
    rows = {"data_set": "pydoc", "train_rows": 48}
    sets = {"block_size": 0, "answer_sets": ["gsm_symbolic", "pydoc"]}
    found = [{"step": "distillation", "params": rows}, {"step": "pruning", "params": sets}]

    def done(**changes) -> list[int]:
        told = plan.plan_rows(setting_of(SMALL, **changes), found)
        return [told[record["step"]].done for record in found]

    sizes = SMALL["data_sets"]
    assert done() == [1, 1]
    assert done(data_sets=sizes | {"pydoc": 24}) == [0, 1]
    assert done(data_sets=sizes | {"alpaca": 24}) == [1, 0]


def test_scaling_adds_fine_tunings_that_are_done_apart_from_the_full_ones():
    s = setting_of(SMALL, scaling={"rows": [12, 24], "block_sizes": [4], "data_sets": ["pydoc"]})
    done = {"block_size": 4, "data_set": "pydoc", "seed": 0, "train_rows": 12}
    row = plan.plan_rows(s, [{"step": "finetuning", "params": done}])["finetuning"]
    assert (row.jobs, row.done) == (6, 1)


def test_other_capacities_are_jobs_of_their_own():
    s = setting_of(SMALL, capacities=CAPACITIES)
    main = {"block_size": 6, "data_set": "pydoc", "seed": 0, "train_rows": 48, "lora_rank": 16, "lora_alpha": 32}
    large = main | {"lora_rank": 64, "lora_alpha": 64, "lora_targets": "all-linear", "capacity": "r64a64-all-linear"}
    for done in ([main], [large], [main, large]):
        row = plan.plan_rows(s, [{"step": "finetuning", "params": params} for params in done])["finetuning"]
        assert (row.jobs, row.done) == (6, len(done))


def test_every_draft_reads_the_answers_once_and_one_of_them_decodes():
    s = setting_of(COMMITTED, speculation=DRAFTS, block_sizes=[3, 6], finetune_block_sizes=[6])
    prompts = [token_lengths.set_lengths(name)["prompt"] for name in s.study.data_sets]
    drafts = 2 + 2 * 2 * 3  # pruned; by arm, data set and seed
    found = costs.speculative_decoding(s)
    assert found.read == pytest.approx((1 + drafts) * 12 * (sum(prompts) + 2 * 48))
    assert found.generated == 2 * 2 * 16 * 48
    longer = costs.speculative_decoding(setting_of(COMMITTED, speculation=DRAFTS | {"draft_tokens": 8}))
    assert longer.seconds > costs.speculative_decoding(setting_of(COMMITTED, speculation=DRAFTS)).seconds


def test_every_format_of_a_model_costs_a_scoring():
    one, two = (setting_of(COMMITTED, quantization={"formats": formats}) for formats in (["nf4"], ["int8", "nf4"]))
    assert costs.quantization(two).read == pytest.approx(1.5 * costs.quantization(one).read)
    each = costs.evaluation(one, 6).read + costs.fidelity(one, 6).read
    assert costs.quantization(one).read == pytest.approx(2 * 4 * each)  # original, pruned, and one per data set


def test_more_arms_cost_more_and_only_own_answers_are_a_further_set():
    two, three, four = (
        setting_of(SMALL, arms=["sft", "self_data_ft", *more])
        for more in ([], ["mixed_ft"], ["mixed_ft", "self_generated_ft"])
    )
    tuned = [costs.finetuning(s, block_size=4, data_set="pydoc", rows=48) for s in (two, three, four)]
    assert tuned[1].trained == pytest.approx(1.5 * tuned[0].trained)  # the mix is the mean of the two
    assert tuned[0].seconds < tuned[1].seconds < tuned[2].seconds
    written = [costs.distillation(s, "pydoc").generated for s in (two, three, four)]
    assert written == pytest.approx([written[0], written[0], 2 * written[0]])
    answers = [costs.pruned(two, n).generated - costs.evaluation(two, n).generated for n in (0, 4)]
    assert answers == pytest.approx([2 * 2 * 12 * 48, 0])  # greedy and sampled, of two sets, by the original alone


def test_arms_that_learn_distributions_cost_a_reading_and_on_policy_answers_too():
    two, scored, own = (
        setting_of(SMALL, arms=["sft", "self_data_ft", *more]) for more in ([], ["logit_kd", "text_kd"], ["on_policy"])
    )
    tuned, with_scored, with_own = (
        costs.finetuning(s, block_size=4, data_set="pydoc", rows=48) for s in (two, scored, own)
    )
    known = token_lengths.set_lengths("pydoc")
    row, text = known["prompt"] + known["response"], known["response"]
    assert with_scored.trained - tuned.trained == pytest.approx(48 * (row + text))
    assert with_own.trained - tuned.trained == pytest.approx(48 * row)
    answers = costs.evaluation(two, 4).generated + 48 * known["response"]  # one more model is scored
    assert with_own.generated - tuned.generated == pytest.approx(answers)
    read = [costs.distillation(s, "pydoc") for s in (two, scored, own)]
    assert read[1].read - read[0].read == pytest.approx(48 * (row + text))
    assert read[1].disk - read[0].disk == pytest.approx(costs.TEACHER_BYTES * 48 * 2 * known["response"])
    assert read[2] == read[0]
    assert with_own.seconds > with_scored.seconds / 2 > tuned.seconds / 2
    job = next(job for job in study_jobs(two.study) if job.step == "finetuning")
    assert memory.peak(two, job) <= memory.peak(scored, job) <= memory.peak(own, job)


def test_attempts_are_counted_as_the_rows_that_are_likely_to_be_written_again():
    once, thrice = (setting_of(SMALL, rewrite_attempts=attempts) for attempts in (1, 3))
    one, three = (costs.distillation(s, "pydoc") for s in (once, thrice))
    again = 1 + costs.REJECTED + costs.REJECTED**2
    assert (three.generated, three.read) == (pytest.approx(again * one.generated), pytest.approx(again * one.read))
    assert one.seconds < three.seconds < 3 * one.seconds
    assert one.disk < three.disk < again * one.disk  # the judged set has no more rows
    job = next(job for job in study_jobs(thrice.study) if job.step == "distillation")
    assert memory.peak(thrice, job) == memory.peak(once, job)
    told = ["written again" in "\n".join(plan.notes(s, plan.plan_rows(s, []))) for s in (once, thrice)]
    assert told == [False, True]


def test_strategies_cost_a_model_per_choice_and_iterative_a_pass_per_layer():
    plain, three, all_ = (
        setting_of(SMALL, selection=["angular", *more], block_sizes=[2, 6], finetune_block_sizes=[6])
        for more in ([], ["block_influence", "random"], ["block_influence", "random", "iterative"])
    )
    reads = [costs.similarity(s).read for s in (plain, three, all_)]
    assert reads == pytest.approx([reads[0], 2 * reads[0], 2 * 6 * reads[0]])  # two sets, and six layers in turn
    rows = [plan.plan_rows(s, []) for s in (plain, three, all_)]
    assert [own["selection"].jobs if "selection" in own else 0 for own in rows] == [0, 2, 2]
    read = costs.pruned(plain, 6).read
    assert [costs.selected(s, 6).read for s in (three, all_)] == pytest.approx([4 * read, 5 * read])
    assert costs.selected(all_, 6).seconds < 5 * costs.pruned(plain, 6).seconds  # one job, which starts once


def test_a_mixture_costs_a_parents_training_beside_the_merge():
    plain, mixed = (
        costs.merging(setting_of(SMALL, train_on_mixture=on), block_size=4, data_sets=("pydoc", "gsm_symbolic"))
        for on in (False, True)
    )
    s = setting_of(SMALL, arms=["self_data_ft"])
    parents = [costs.finetuning(s, block_size=4, data_set=d, rows=48).trained for d in ("pydoc", "gsm_symbolic")]
    assert plain.trained == 0
    assert mixed.trained == pytest.approx(sum(parents) / 2)
    assert mixed.seconds - plain.seconds > costs.train_seconds(s, 4, mixed.trained)


def test_zero_means_all_and_shots_lengthen_contexts(paper):
    assert token_lengths.rows_of(paper.study, "gsm8k") == 7473
    assert token_lengths.documents_of(paper.study, "mmlu") == 14042
    few = SimpleNamespace(**PAPER | {"tasks": {"mmlu": 10, "hellaswag": 200}, "shots": {}})
    assert token_lengths.documents_of(few, "mmlu") == 570
    assert token_lengths.documents_of(few, "hellaswag") == 200
    assert token_lengths.context_of(paper.study, "hellaswag") > 5 * token_lengths.context_of(few, "hellaswag")


def test_what_was_never_measured_is_said():
    s = setting_of(SMALL, data_sets={"mine": 100}, merge_pairs=[], tasks={"piqa": 50}, calibration_sets=["mine"])
    text = plan.plan_report("mine.yaml", s, [], origin="here", power="power")
    assert "never measured: mine, piqa; data sets are taken to be like alpaca" in text


def test_report_ends_with_what_to_do(committed, records):
    lines = plan.plan_report("embedded", committed, records, origin="here", power="power").splitlines()
    assert any(re.match(r"finetuning +6 +6 ", line) for line in lines)
    assert "power" in lines
    assert [line.split(":")[0] for line in lines[-3:]] == ["prefetch", "run", "left out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-study"], "study 'no-such-study' is unknown: use one of"),
        (["embedded", "--hardware", "tpu"], "hardware 'tpu' is unknown: use one of cpu-2-cores, h100-80gb, a100-80gb"),
    ],
)
def test_wrong_names_get_one_sentence(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    assert plan.main() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_architecture_table_reads_any_config(model_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["architecture", str(model_folder / "config.json"), "2"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(architecture.__file__, run_name="__main__")
    parameters = json.loads((model_folder / "config.json").read_text())["num_hidden_layers"]
    assert f"|   0 |        {parameters} |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["architecture", "nobody"])
    assert architecture.main() == 2
    assert "name a folder, a config.json or one of Llama-3.1-8B-Instruct" in capsys.readouterr().err
