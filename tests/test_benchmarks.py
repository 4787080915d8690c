"""Every benchmark at a small size on the tiny model: both sides do the same work and come to the same answer."""

import hashlib
import importlib
import importlib.util
import itertools
import json
import subprocess
from types import SimpleNamespace
from unittest import mock

import peft
import pytest
import tiny_models
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma3TextConfig

from benchmarks import (
    ablation,
    breakdown,
    compare,
    distillation_steps,
    evaluation_cost,
    gguf_likelihoods,
    rewrite_wordings,
    roofline,
    run,
    scaling,
    study,
    text_start,
)
from sdd_utils import ROOT
from sdd_utils.engine import decoding, packed_linear
from sdd_utils.models import architecture, store

MADE_BY_OTHERS = ("merging", "distillation_engines", "ablation")  # tested on their own below


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch):
    monkeypatch.setattr(roofline, "READ_BYTES", 2**20)
    monkeypatch.setattr(roofline, "ROWS", (8,))


@pytest.mark.parametrize("name", [name for name in run.STAGES if name not in MADE_BY_OTHERS])
def test_ours_and_the_peer_come_to_the_same_answer(name, model_folder):
    stage = importlib.import_module(f"benchmarks.{name}")
    entries = compare.compare(stage, size=stage.SMALL, model=str(model_folder), memory=False)
    assert [entry["peer"] for entry in entries] == list(stage.PEERS)
    assert {entry["model"] for entry in entries} == {"tiny-llama"}
    assert all(entry["equal"] in (True, None) for entry in entries), entries
    limits = [entry["peer"].endswith(compare.LIMIT) for entry in entries]
    assert [entry["equal"] is None for entry in entries] == limits, "only a limit has no answer to compare"
    assert all((entry["roofline_share"] or 1) > 0 for entry in entries)


@pytest.mark.parametrize("stage", ablation.STAGES, ids=lambda stage: stage.NAME)
def test_without_a_path_the_answer_is_the_same(stage, model_folder):
    entries = compare.compare(stage, size=stage.SMALL, model=str(model_folder), memory=False)
    assert all(entry["equal"] for entry in entries), entries


def test_a_switched_off_path_is_not_taken(model_folder, tmp_path):
    """Each switch changes what its stage does: a call that is made with the path is not made without, or differs."""
    stage = ablation.STAGES[0]
    state = stage.prepare(str(model_folder), scratch=tmp_path, **stage.SMALL)
    with mock.patch.object(decoding, "_step", wraps=decoding._step) as step:
        stage.ours(state)
        drafted = step.call_count
        stage.PEERS["without: drafts by prompt lookup"][0](state)
        assert step.call_count - drafted > drafted
    with mock.patch.object(packed_linear, "_multiply", wraps=packed_linear._multiply) as multiply:
        stage.ours(state)
        assert multiply.called
        multiply.reset_mock()
        stage.PEERS["without: packed weights"][0](state)
        assert not multiply.called
    with mock.patch.object(ablation, "repeat_kv", wraps=ablation.repeat_kv) as repeated:
        stage.PEERS["without: query heads grouped by key head"][0](state)
        assert repeated.called


def test_steps_of_every_loss_are_timed_on_the_same_rows(model_folder, tmp_path):
    (tmp_path / "pruned").symlink_to(model_folder)
    seconds = distillation_steps.steps(str(model_folder), tmp_path, rows=12, turns=2)
    assert {loss: len(own) for loss, own in seconds.items()} == dict.fromkeys(
        seconds, 4
    )  # of 3 steps, twice, not the first
    assert len(seconds) == 3


def test_merges_are_mergekits(model_folder):
    if importlib.util.find_spec("mergekit") is None:
        pytest.skip('mergekit is not installed: run pip install -e ".[bench]"')
    from benchmarks import merging

    entry, limit = compare.compare(merging, size=merging.SMALL, model=str(model_folder), memory=False)
    assert entry["equal"], entry
    assert limit["equal"] is None


def test_the_limit_of_a_merge_writes_and_hashes_a_parent(model_folder, tmp_path):
    from benchmarks import merging

    state = merging.prepare(str(model_folder), scratch=tmp_path, **merging.SMALL)
    written = merging.copied(state)
    assert (tmp_path / "copied").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
    assert written == hashlib.sha256((tmp_path / "copied").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name", ["similarity", "reading", "distillation", "finetuning", "multiple_choice", "generation_tasks"]
)
def test_a_wrong_answer_is_seen(name, model_folder, tmp_path):
    stage = importlib.import_module(f"benchmarks.{name}")
    state = stage.prepare(str(model_folder), scratch=tmp_path, **stage.SMALL)
    right, wrong = stage.ours(state), stage.ours(state)
    spoil(wrong)
    expected = stage.padded(state) if name == "reading" else right  # its peer gives logits
    assert stage.same(state, right, expected)[0]
    assert not stage.same(state, wrong, expected)[0]


def test_time_counts_by_amount_where_a_peer_does_a_part(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(compare.time, "perf_counter", lambda: float(next(clock)))  # each side takes one second
    stage = SimpleNamespace(
        NAME="s",
        prepare=lambda model, scratch: {},
        ours=lambda state: [1] * 8,
        PEERS={"p": (lambda state: [1] * 2, 1)},
        same=lambda state, ours, peer: (True, ""),
        amount=len,
    )
    (entry,) = compare.compare(stage, size={}, memory=False)
    assert entry["ratio_time"] == 4


def test_a_continuations_likelihood_is_that_of_its_loss(model):
    prompt, continuation = list(range(5, 30)), [7, 9, 11]
    labels = torch.tensor([[-100] * len(prompt) + continuation])
    loss = model(torch.tensor([prompt + continuation]), labels=labels).loss.item()
    (nats,) = gguf_likelihoods.ours(model, [(prompt, continuation)])
    assert nats == pytest.approx(-loss * len(continuation), rel=1e-5)


def test_the_docs_say_what_the_record_of_the_two_engines_holds():
    record = json.loads(gguf_likelihoods.OUT.read_text())
    ids = [(None, range(row["tokens"])) for row in record["prompts"]]
    theirs = [row["nats"]["llama.cpp"] for row in record["prompts"]]
    for engine, said in record["difference"].items():
        own = [row["nats"][engine] for row in record["prompts"]]
        assert gguf_likelihoods.difference(own, theirs, ids) == pytest.approx(said, abs=2e-4)
    page = " ".join((ROOT / "docs" / "own-model.md").read_text().split())
    gaps = [record["difference"][kind]["mean_absolute"] for kind in ("float32", "bfloat16")]
    assert f"{gaps[0]:.2f} nats in float32 and {gaps[1]:.2f} in bfloat16" in page
    assert f"{len(theirs)} prompts with {record['tokens']} tokens" in page
    assert record["same_tokens"]


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)  # attention is an operator of its own


def spoil(answer) -> None:
    """Change an answer in place, whatever its kind."""
    key = next(iter(answer)) if isinstance(answer, dict) else 0
    if isinstance(answer[key], dict) and "filtered" in answer[key]:  # a task's filtered responses
        answer[key]["filtered"][0] = ["another answer"]
    elif isinstance(answer[key], dict):  # a task's score
        answer[key]["accuracy"]["documents"] = [1 - value for value in answer[key]["accuracy"]["documents"]]
    elif isinstance(answer[key], int):  # a row's first token
        answer[key] += 1
    elif isinstance(answer[key], list):  # a row's tokens
        for row in answer.values():
            row[:] = [5] * len(row)
    else:
        answer[key] = answer[key] + 0.1


def test_the_memory_of_a_side_is_what_it_adds(model_folder):
    from benchmarks import similarity

    (side,) = [name for name, (_, turns) in similarity.PEERS.items() if turns == 2]
    found = compare.peaks(similarity, ["ours", side], size=similarity.SMALL, model=str(model_folder))
    assert [*found] == ["ours", side]
    for extra, whole in found.values():
        assert 0 <= extra < 200e6 < whole


ENTRY = {"stage": "a", "model": "m", "peer": "p", "ratio_time": 2.0, "ratio_memory": None, "roofline_share": 0.5}
ENTRY |= {"equal": True, "n": 3, "spread": [1.5, 2.5], "peak": None, "note": "x", "processor": "one"}


def test_entries_replace_those_of_their_stage_model_and_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    run.write([ENTRY, ENTRY | {"stage": "b"}])
    run.write([ENTRY | {"ratio_time": 4.0}])
    run.write([ENTRY | {"ratio_time": 3.0, "processor": "another"}])
    run.write([ENTRY | {"ratio_time": 5.0, "model": "m2"}])
    read = json.loads((tmp_path / "results.json").read_text())
    kept = [(e["stage"], e["model"], e["processor"], e["ratio_time"]) for e in read]
    assert kept == [("a", "m", "one", 4.0), ("a", "m", "another", 3.0), ("a", "m2", "one", 5.0), ("b", "m", "one", 2.0)]
    assert "4.00" in (tmp_path / "results.md").read_text()


def test_an_ablation_has_a_table_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    run.write([ENTRY, ENTRY | {"stage": f"{ablation.PREFIX}b", "peer": "without: q"}])
    beside, parts = ((tmp_path / name).read_text() for name in ("results.md", "ablation.md"))
    assert "without: q" in parts
    assert "without: q" not in beside
    assert " p " in beside
    assert "50%" in beside


def test_the_page_shows_the_committed_results():
    entries = json.loads((run.HERE / "results.json").read_text())
    for name, text in run.tables(entries).items():
        assert (run.HERE / name).read_text() == text
        assert text in run.PAGE.read_text(encoding="utf-8")
    assert all(entry["spread"][0] <= entry["ratio_time"] <= entry["spread"][1] for entry in entries)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("some/place/model-a/", "model-a"),
        ("org/model-b@0a1b", "model-b"),
        ("org/model-GGUF:model-c-q4.gguf", "model-c-q4"),
        ("org/model-GGUF@0a1b:model-c-q4.gguf", "model-c-q4"),
    ],
)
def test_a_row_names_the_model_and_no_place(given, named):
    assert compare.model_name(given) == named


def test_large_models_do_less_of_the_work(model_folder, monkeypatch):
    stage = SimpleNamespace(FULL={"rows": 8, "batch": 2}, LARGE={"rows": 3})
    assert run.size_of(stage, str(model_folder)) == {"rows": 8, "batch": 2}
    monkeypatch.setattr(run, "LARGE_MODEL", 1)
    assert run.size_of(stage, str(model_folder)) == {"rows": 3, "batch": 2}


def test_a_stage_with_its_own_model_runs_once():
    stages = [(stage.NAME, model) for stage, model in run.runs(["similarity", "merging"], ["a", "b"])]
    assert stages == [("similarity, 5 block sizes", "a"), ("merging", "a"), ("similarity, 5 block sizes", "b")]


def test_a_share_is_the_least_time_over_ours(monkeypatch):
    clock = itertools.count(step=2)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: float(next(clock)))  # each side takes two seconds
    stage = SimpleNamespace(
        NAME="s",
        prepare=lambda model, scratch: {},
        ours=lambda state: 1,
        PEERS={"p": (lambda state: 1, 3)},
        same=lambda state, ours, peer: (True, ""),
        least_seconds=lambda model, state, answer: 0.5,
    )
    (entry,) = compare.compare(stage, size={}, memory=False)
    assert entry["roofline_share"] == 0.25


def test_operations_are_those_that_torch_counts(model_folder):
    model, _ = store.load_model(str(model_folder))
    counts, ids = roofline.shape(str(model_folder)), torch.arange(12)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, logits_to_keep=3, use_cache=False)
    products = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if op in PRODUCTS)
    assert roofline.forward_flops(counts, tokens=12, predicted=3) == products


def test_operations_of_training_are_those_that_torch_counts(model_folder):
    model, _ = store.load_model(str(model_folder))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    counts, ids = roofline.shape(str(model_folder)), torch.arange(12)[None]
    adapted.enable_input_require_grads()  # else the first layer's frozen weights have nothing to pass back to
    with FlopCounterMode(display=False) as counter:
        adapted(ids, logits_to_keep=3, use_cache=False).logits.sum().backward()
    products = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if op in PRODUCTS)
    assert roofline.training_flops(counts, tokens=12, trained=3) == products


def test_a_joint_step_reads_each_weight_and_every_cached_number(model_folder):
    model, _ = store.load_model(str(model_folder))
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    cache = model(torch.arange(7)[None]).past_key_values
    cached = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert roofline.step_bytes(roofline.shape(str(model_folder)), cached=7, width=4) == 4 * (weights + cached)


def test_the_study_runs_the_code_of_the_revision_it_is_asked_for(tmp_path, monkeypatch):
    def git(*command):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *command], cwd=tmp_path / "repo", check=True)

    package = tmp_path / "repo" / "sdd_utils"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git("init", "--quiet")
    (package / "sweep").mkdir()
    for name, place in (("first", package), ("second", package / "sweep")):
        said = f"import sys, pathlib; pathlib.Path({str(tmp_path)!r}, {name!r}).write_text(sys.argv[1])"
        (place / "reproduce.py").write_text(said)
        git("add", "-A")
        git("commit", "--quiet", "-m", name)
    monkeypatch.setattr(study, "ROOT", tmp_path / "repo")
    assert study.seconds("HEAD~1") > 0
    assert (tmp_path / "first").read_text() == "embedded"
    assert not (tmp_path / "second").exists()
    assert study.seconds("HEAD") > 0
    assert (tmp_path / "second").read_text() == "embedded"


def test_the_study_runs_when_asked_for_only(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").touch()
    monkeypatch.setattr(study, "seconds", lambda revision: {study.FIRST: 200, "HEAD": 50}[revision])
    monkeypatch.setattr(run.store, "find_model", lambda name: name)
    run.main(["study"], ["m"])
    assert [(e["stage"], e["ratio_time"]) for e in run.former()] == [(study.NAME, 4.0)]
    assert "study" not in run.STAGES


@pytest.mark.parametrize("amount", ["layers", "rows"])
@pytest.mark.parametrize("stage", scaling.AMOUNTS)
def test_a_stage_is_scaled_by_the_amount_that_is_named(stage, amount, model_folder, tmp_path):
    size = scaling.SMALL | {"stage": stage, amount: 3}
    state = scaling.prepare(str(model_folder), scratch=tmp_path, **size)
    scaling.ours(state)
    folder = tmp_path / "a"
    config = store.load_config(folder) if folder.is_dir() else state["model"].config
    assert config.num_hidden_layers == size["layers"]
    assert [len(prompt) for prompt in state["prompts"].values()] == [size["tokens"]] * size["rows"]


def test_an_exponent_is_the_power_of_the_growth():
    points = [{"value": value, "seconds": 3 * value**1.5} for value in (1, 4, 9)]
    assert scaling.exponent(points, "seconds") == 1.5


@pytest.mark.parametrize("name", breakdown.STAGES)
def test_the_parts_of_a_stage_are_its_whole_time(name, model_folder):
    stage = importlib.import_module(f"benchmarks.{name}")
    entry = breakdown.measure(name, str(model_folder), size=stage.SMALL)
    assert sum(entry["parts"].values()) == pytest.approx(1, abs=0.002)
    assert entry["parts"]["linear maps"] > 0
    assert entry["parts"]["attention"] > 0


def test_operators_are_told_apart():
    seconds = {
        "aten::mm": 1,
        "mkldnn::_linear_pointwise": 2,
        "aten::_softmax": 1,
        "aten::_log_softmax": 3,
        "aten::bmm": 3,
    }
    found = breakdown.parts(seconds)
    assert found["parts"] == {"linear maps": 0.3, "attention": 0.4, "other": 0.3}
    assert found["largest_other"] == {"aten::_log_softmax": 0.3}


def test_unknown_stages_are_named():
    with pytest.raises(SystemExit, match="stage 'merge' is unknown: use some of similarity, .*, study"):
        run.main(["merge"], [])


def test_the_table_of_wordings_is_that_of_its_record():
    record = json.loads(rewrite_wordings.OUT.read_text())
    lines = rewrite_wordings.OUT.with_suffix(".md").read_text().splitlines()[2:]
    assert len(lines) == len(record)
    for line, entry in zip(lines, record, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:4] == [entry["model"], entry["data_set"], entry["wording"], str(entry["rows"])]
        shares = [kept["rows"] / entry["rows"] for kept in entry["kept"]]
        assert [cell.split()[0] for cell in cells[4:]] == [f"{share:.0%}" for share in shares]


def test_without_bos_a_block_is_chosen_as_by_a_tokenizer_that_adds_none(tmp_path):
    texts, settings = ["One text.", "Another, longer text."], {"block_size": 3, "max_length": 32, "batch_size": 2}
    folder = tiny_models.write("llama", tmp_path / "adds")
    found = text_start.compare(str(folder), texts, **settings)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    other = text_start.compare(str(folder), texts, **settings)
    assert (found["adds_bos"], other["adds_bos"]) == (True, False)
    assert found["blocks"]["without BOS"] == other["blocks"]["as it is"] == other["blocks"]["without BOS"]
    block = found["blocks"]["as it is"]
    assert block["distance"] != other["blocks"]["as it is"]["distance"]
    (line,) = text_start.table([{"model": str(folder), **found}]).to_dict("records")
    assert (line["model"], line["opens texts with BOS"]) == ("adds", "yes")
    assert line["block as it is"].startswith(f"[{block['start']}, {block['start'] + 3}), distance 0.")


def test_layers_of_each_kind_are_numbered_anew_behind_a_cut():
    config = Gemma3TextConfig(num_hidden_layers=7)
    assert text_start.kinds_of(config) == {"full_attention": [5], "sliding_attention": [0, 1, 2, 3, 4, 6]}
    cut = architecture.pruned_config(config, start=1, block_size=2)
    assert text_start.kinds_of(cut) == {"full_attention": [3], "sliding_attention": [0, 1, 2, 4]}
    assert text_start._counted(text_start.kinds_of(cut)) == "full 1, sliding 4"


def test_the_cost_of_an_evaluation_is_that_of_its_tasks(model_folder, tmp_path, monkeypatch):
    settings = {"tasks": {"facts": 4, "gsm_symbolic_gold": 2}, "shots": {}, "chat_tasks": [], "batch_size": 2}
    tasks = evaluation_cost.measure(str(model_folder), **settings)
    assert {name: task["documents"] for name, task in tasks.items()} == settings["tasks"]
    assert all(task["seconds"] > 0 for task in tasks.values())

    monkeypatch.setattr(evaluation_cost, "OUT", tmp_path / "cost.json")
    monkeypatch.setattr(evaluation_cost.run, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("")
    entry = {"study": "a", "model": "m", "processor": "p", "dtype": "float32"}
    halves = {"facts": {"documents": 4, "seconds": 45.0}, "arc": {"documents": 2, "seconds": 45.0}}
    for processor, tasks in (("p", halves), ("q", halves), ("p", {"facts": halves["facts"]})):
        evaluation_cost.add(entry | {"processor": processor, "tasks": tasks})
    kept = evaluation_cost.table(json.loads((tmp_path / "cost.json").read_text()))
    assert [*zip(kept["processor"], kept["minutes"], strict=True)] == [("p", "0.8"), ("q", "1.5")]
