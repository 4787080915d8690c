"""A killed training resumes, batches hold no padding, and two processes train as one does: each against plain runs."""

import pickle
from pathlib import Path

import pytest
import torch
from conftest import tiny_llama
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from trl import SFTTrainer
from unlike_llama import CONFIGS, build, plain_log_probs

from sdd_utils import ROOT
from sdd_utils.engine import attention
from sdd_utils.models import store
from sdd_utils.steps import lora_training, training_rows

SETTINGS = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_targets": "all-linear", "learning_rate": 1e-2}
SETTINGS |= {"epochs": 2, "batch_size": 4, "seed": 3, "trained_tokens": 0}


@pytest.fixture
def data():
    """Ten rows of 9 to 36 tokens: three steps an epoch, the last one of two rows."""
    lengths = range(9, 37, 3)
    masks = [[0] * 4 + [1] * (length - 4) for length in lengths]
    return Dataset.from_dict({"input_ids": [[*range(5, 5 + n)] for n in lengths], "completion_mask": masks})


def job_of(folder: Path, adapter: Path, **changes) -> dict:
    return {"folder": str(folder), "adapter": str(adapter), "key": "k", "settings": SETTINGS | changes}


def weights(adapter: Path) -> dict:
    return load_file(adapter / "adapter_model.safetensors")


def spied(monkeypatch, *, die_at: int | None = None) -> list[dict]:
    """Every training step's inputs and, after it, the gradients; the step numbered `die_at` is not survived."""
    seen, plain = [], SFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        if self.state.global_step == die_at:
            raise KeyboardInterrupt
        batch = {name: tensor.clone() for name, tensor in inputs.items() if torch.is_tensor(tensor)}
        loss = plain(self, model, inputs, *args, **kwargs)
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        seen.append({"step": self.state.global_step, "inputs": batch, "grads": grads})
        return loss

    monkeypatch.setattr(SFTTrainer, "training_step", training_step)
    return seen


def test_every_epoch_holds_each_row_once_and_fillers_only_complete_its_last_batch(data):
    order = lora_training.schedule(data, epochs=2, batch_size=4, seed=3, trained_tokens=0)
    assert len(order) == 24
    for epoch in (order.select(range(12)), order.select(range(12, 24))):
        assert sorted(epoch["input_ids"][:10], key=len) == data["input_ids"]
        assert epoch["input_ids"][10:] == [[0], [0]]
        assert epoch["completion_mask"][10:] == [[0], [0]]
    assert order["input_ids"][:10] != order["input_ids"][12:22]
    assert len(lora_training.schedule(data, epochs=1, batch_size=5, seed=3, trained_tokens=0)) == 10


@pytest.mark.parametrize("budget", [370, 185, 100, 3])
def test_a_token_budget_ends_the_same_order_before_it_is_exceeded(data, budget):
    def real(scheduled):
        return [row for row in scheduled if any(row["completion_mask"])]

    def tokens(rows):
        return sum(sum(row["completion_mask"]) for row in rows)

    settings = {"epochs": 2, "batch_size": 4, "seed": 3}
    whole = real(lora_training.schedule(data, **settings, trained_tokens=0))
    cut = lora_training.schedule(data, **settings, trained_tokens=budget)
    kept = real(cut)
    assert tokens(whole) == 370
    assert kept == whole[: len(kept)]
    assert len(kept) == 1 or tokens(kept) <= budget  # one row is trained at least
    assert len(kept) == len(whole) or tokens(whole[: len(kept) + 1]) > budget
    assert len(cut) % 4 == 0


def test_an_interrupted_training_resumes_and_ends_bit_for_bit_the_same(model_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training, "SAVE_STEPS", 2)
    dropout = {"lora_dropout": 0.1}  # so that the random state must come back as well
    whole = lora_training.train(job_of(model_folder, tmp_path / "whole", **dropout), data)
    job = job_of(model_folder, tmp_path / "cut", **dropout)
    with monkeypatch.context() as context:
        spied(context, die_at=5)
        with pytest.raises(KeyboardInterrupt):
            lora_training.train(job, data)
    place = lora_training.checkpoints(job, processes=1)
    assert [folder.name for folder in place.glob("c*-*")] == ["complete-4"]
    (place / "checkpoint-5").mkdir()
    (place / "checkpoint-5" / "adapter_model.safetensors").write_bytes(b"half")
    with monkeypatch.context() as context:
        seen = spied(context)
        resumed = lora_training.train(job, data)
    assert [entry["step"] for entry in seen] == [4, 5]
    assert resumed == whole
    assert len(whole["loss"]) == whole["steps"] == 6
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    assert not [path for path in (tmp_path / "cut").iterdir() if path.suffix in (".bin", ".pt", ".pth")]


@pytest.mark.parametrize("targets", ["q_proj, v_proj", "q_proj,v_prj"])
def test_a_target_that_the_model_does_not_have_is_named(model_folder, data, tmp_path, targets):
    wrong = targets.split(",")[1]
    with pytest.raises(ValueError, match=rf"lora_targets names '{wrong}': use 'all-linear', or of .*v_proj.*, with"):
        lora_training.train(job_of(model_folder, tmp_path / "a", lora_targets=targets), data)


def test_a_checkpoint_that_carries_code_is_refused(model_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training, "SAVE_STEPS", 2)
    job = job_of(model_folder, tmp_path / "a")
    with monkeypatch.context() as context:
        spied(context, die_at=2)
        with pytest.raises(KeyboardInterrupt):
            lora_training.train(job, data)
    optimizer = lora_training.checkpoints(job, processes=1) / "complete-2" / "optimizer.pt"
    torch.save({"state": Path(tmp_path)}, optimizer)  # any class that is no tensor
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        lora_training.train(job, data)


def test_batches_without_padding_train_as_padded_ones_do(model_folder, data, tmp_path, monkeypatch):
    plain_arguments = lora_training._arguments
    alone, lengths_of = [], attention.row_lengths
    with monkeypatch.context() as context:
        free = spied(context)
        context.setattr(attention, "row_lengths", lambda positions: alone.append(lengths_of(positions)) or alone[-1])
        report = lora_training.train(job_of(model_folder, tmp_path / "free"), data)
    del alone[0]  # the probe's
    assert [*map(sum, alone)] == [len(each["inputs"]["input_ids"][0]) for each in free]
    assert all(len(rows) == 4 for rows in alone)

    def padded_arguments(*args, **kwargs):
        arguments = plain_arguments(*args, **kwargs)
        arguments.padding_free = False
        return arguments

    padded = spied(monkeypatch)
    monkeypatch.setattr(lora_training, "_arguments", padded_arguments)
    monkeypatch.setattr(lora_training, "Trainer", SFTTrainer)  # its own loss, which reads every position
    expected = lora_training.train(job_of(model_folder, tmp_path / "padded"), data)
    assert all(len(entry["inputs"]["input_ids"]) == 1 and "attention_mask" not in entry["inputs"] for entry in free)
    for step, reference in zip(free, padded, strict=True):
        rows = reference["inputs"]
        assert len(rows["input_ids"]) == 4
        real = rows["attention_mask"].bool()
        assert torch.equal(step["inputs"]["input_ids"][0], rows["input_ids"][real])  # same rows, same order
        for name, gradient in reference["grads"].items():
            torch.testing.assert_close(step["grads"][name], gradient, atol=1e-5, rtol=1e-4)
    assert [step for step, _ in report["loss"]] == [step for step, _ in expected["loss"]] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(torch.tensor(report["loss"]), torch.tensor(expected["loss"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(tmp_path / "free"), weights(tmp_path / "padded"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_are_read_in_several_passes_give_the_same_steps(model_folder, data, tmp_path, monkeypatch, rows):
    whole = lora_training.train(job_of(model_folder, tmp_path / "whole"), data)
    longest = max(map(len, data["input_ids"]))
    monkeypatch.setattr(training_rows, "TOKENS_AT_ONCE", (2 * rows - 1) * longest)  # 3 of 4 rows share them unevenly
    passes, plain = [], lora_training.Trainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        passes.append(len(attention.row_lengths(inputs["position_ids"][0])))
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(lora_training.Trainer, "compute_loss", spy)
    parts = lora_training.train(job_of(model_folder, tmp_path / "parts"), data)
    assert passes == [rows] * (4 // rows) * parts["steps"]
    torch.testing.assert_close(torch.tensor(parts["loss"]), torch.tensor(whole["loss"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("longest", "rows"), [(100, 8), (192, 8), (193, 4), (384, 4), (500, 2), (1536, 1), (9999, 1)])
def test_as_many_rows_are_read_at_once_as_share_a_batch_evenly(longest, rows):
    assert training_rows.rows_at_once(8, longest) == rows
    assert training_rows.rows_at_once(7, longest) == (7 if 7 * longest <= 1536 else 1)


def test_the_first_loss_is_the_one_that_transformers_computes(tokenizer, model_folder, data, tmp_path):
    """An independent reference: pad with a mask, let transformers compute the loss of the first batch."""
    report = lora_training.train(job_of(model_folder, tmp_path / "a"), data)
    first = lora_training.schedule(data, epochs=2, batch_size=4, seed=3, trained_tokens=0).select(range(4))
    pad = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = pad([{"input_ids": ids} for ids in first["input_ids"]])
    labels = torch.full_like(batch["input_ids"], -100)
    for i, (ids, mask) in enumerate(zip(first["input_ids"], first["completion_mask"], strict=True)):
        trained = torch.tensor(mask, dtype=torch.bool)
        start = labels.shape[1] - len(ids)  # left-padded
        labels[i, start:] = torch.where(trained, torch.tensor(ids), -100)
    mask = torch.stack([torch.arange(labels.shape[1]) >= labels.shape[1] - len(ids) for ids in first["input_ids"]])
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        loss = tiny_llama(tokenizer)(
            batch["input_ids"], attention_mask=mask.long(), position_ids=positions, labels=labels
        ).loss
    assert report["loss"][0][1] == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig, Qwen3Config, Gemma3TextConfig])
def test_rows_of_one_sequence_do_not_see_each_other(config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "initializer_range": 0.3, "pad_token_id": 0}
    sliding = {} if config is LlamaConfig else {"sliding_window": 4}
    model = AutoModelForCausalLM.from_config(config(**sizes, **sliding), attn_implementation="sdpa").eval()
    rows = [torch.randint(1, 64, (1, length)) for length in (7, 1, 9)]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.no_grad():
        together = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False).logits
        apart = torch.cat([model(row, use_cache=False).logits for row in rows], dim=1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_two_processes_that_shard_the_model_and_resume_train_as_one_does(model_folder, data, tmp_path, monkeypatch):
    one = lora_training.train(job_of(model_folder, tmp_path / "one"), data)
    monkeypatch.setattr(lora_training, "WORKER", [str(Path(__file__).with_name("fsdp_on_cpu.py"))])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    two = lora_training.launch(job_of(model_folder, tmp_path / "two"), data, processes=2)
    assert two | {"loss": []} == one | {"loss": []}
    torch.testing.assert_close(torch.tensor(two["loss"]), torch.tensor(one["loss"]), atol=1e-5, rtol=0)
    # Adam divides a gradient by its size, so that near 0 rounding grows to a share of a step, which is 1e-2 here.
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-4, rtol=1e-3)
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] >= {"adapter_config.json", "adapter_model.safetensors", "training.json"}
    store.load_model(model_folder, adapter=tmp_path / "two")


def test_a_failed_launch_names_its_log(data, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"training in 2 processes ended with status 1: read .*-x2/log.txt"):
        lora_training.launch(job_of(tmp_path, tmp_path / "a"), data, processes=2)


def test_several_gpus_are_used_if_they_can_share_a_batch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training, "launch", lambda job, rows, *, processes: {"processes": processes})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = {"adapter": tmp_path / "a", "key": "k", "settings": SETTINGS}
    assert lora_training.run(tmp_path, data, **arguments) == {"processes": 2}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size = 4 cannot be shared equally by 3 GPUs: make it a multiple of 3"):
        lora_training.run(tmp_path, data, **arguments)


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_of_a_batch_have_the_losses_of_each_alone_whatever_the_architecture(kind, tokenizer, data, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    report = lora_training.train(job_of(tmp_path / "model", tmp_path / "a", epochs=1), data)
    first = lora_training.schedule(data, epochs=1, batch_size=4, seed=3, trained_tokens=0).select(range(4))
    loss = tokens = 0
    for row in first:
        log_probs = plain_log_probs(model, row["input_ids"])
        trained = [i for i, kept in enumerate(row["completion_mask"]) if kept]
        loss -= sum(float(log_probs[i - 1, row["input_ids"][i]]) for i in trained)
        tokens += len(trained)
    assert report["loss"][0][1] == pytest.approx(loss / tokens, abs=2e-4)
    assert report["steps"] == 3


def test_rows_read_one_by_one_train_as_rows_end_to_end_do(model_folder, data, tmp_path, monkeypatch):
    together = lora_training.train(job_of(model_folder, tmp_path / "together"), data)
    with monkeypatch.context() as context:
        seen = spied(context)
        context.setattr(lora_training, "keeps_rows_apart", lambda model: False)
        alone = lora_training.train(job_of(model_folder, tmp_path / "alone"), data)
    assert all(len(entry["inputs"]["input_ids"]) == 1 for entry in seen)
    assert len(seen) == 4 * together["steps"]
    assert alone | {"loss": []} == together | {"loss": []}
    torch.testing.assert_close(torch.tensor(alone["loss"]), torch.tensor(together["loss"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(tmp_path / "alone"), weights(tmp_path / "together"), atol=1e-4, rtol=1e-3)


def test_chunks_that_begin_at_fixed_places_are_not_packed(capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "attention_chunk_size": 512}
    model = Llama4ForCausalLM(Llama4TextConfig(**sizes, num_local_experts=2, pad_token_id=0)).eval()
    assert not lora_training.keeps_rows_apart(model)
    assert "chunks begin at fixed places" in capsys.readouterr().err
