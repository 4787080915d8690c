"""Training: resumed where it was killed, without padding, and the same in one process as in two."""

import pytest
import torch
from conftest import tiny_llama
from safetensors.torch import load_file
from transformers import DataCollatorForLanguageModeling

from sdd_utils import finetuning, models, training

ROWS = [
    {"id": f"r{i}", "instruction": f"Say {i}.", "context": "", "response": "abc" * (1 + i % 5), "answer": ""}
    for i in range(11)
]
SETTINGS = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_targets": "all-linear"}
SETTINGS |= {"learning_rate": 1e-2, "epochs": 2, "batch_size": 4, "seed": 3}


@pytest.fixture(scope="module")
def data(tokenizer):
    return finetuning.paired_sets(tokenizer, ROWS, ROWS, max_length=500)["sft"]


@pytest.fixture(scope="module")
def whole(model_folder, data, tmp_path_factory):
    """An uninterrupted training: its folder and report."""
    adapter = tmp_path_factory.mktemp("whole") / "adapter"
    return adapter, finetuning.finetune(model_folder, data, adapter=adapter, **SETTINGS)


def tensors(adapter):
    return load_file(adapter / "adapter_model.safetensors")


def test_a_killed_training_goes_on_from_its_newest_checkpoint(model_folder, data, whole, tmp_path, monkeypatch):
    adapter, steps = tmp_path / "adapter", []
    monkeypatch.setattr(training, "SAVE_STEPS", 2)
    step = training.SFTTrainer.training_step

    def killed(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(training.SFTTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetuning.finetune(model_folder, data, adapter=adapter, **SETTINGS)
    assert not adapter.exists()
    (kept,) = tmp_path.glob(".adapter.checkpoints-*/complete-*")
    assert kept.name == "complete-4"
    (kept.parent / "checkpoint-5").mkdir()  # half-written, as a kill leaves it

    report = finetuning.finetune(model_folder, data, adapter=adapter, **SETTINGS)
    assert steps == [0, 1, 2, 3, 4, 4, 5]  # the fourth step's checkpoint, not the beginning
    assert report == whole[1]
    for name, tensor in tensors(whole[0]).items():
        assert torch.equal(tensors(adapter)[name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_schedule_holds_every_row_once_an_epoch_in_whole_batches(data):
    ordered = training.schedule(data, epochs=2, batch_size=4, seed=3)
    rows = [tuple(ids) for ids in ordered["input_ids"]]
    assert len(rows) == 24
    for epoch in (rows[:11], rows[12:23]):
        assert sorted(epoch) == sorted(tuple(ids) for ids in data["input_ids"])
    assert rows[:11] != rows[12:23]
    assert ordered["completion_mask"][11] == ordered["completion_mask"][23] == [0]


def test_losses_are_those_of_padded_batches(tokenizer, data, whole):
    """An independent reference: pad with a mask, let transformers compute the loss of the first batch."""
    first = training.schedule(data, epochs=2, batch_size=4, seed=3).select(range(4))
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
    assert whole[1]["loss"][0][1] == pytest.approx(float(loss), abs=1e-5)


def test_two_processes_give_the_losses_and_the_adapter_of_one(model_folder, data, whole, tmp_path):
    """Two CPU processes over gloo, launched as two GPUs would be."""
    job = {"folder": str(model_folder), "adapter": str(tmp_path / "adapter"), "settings": SETTINGS}
    key = finetuning._key(model_folder, data, SETTINGS)
    report = training.launch(job | {"key": key}, data, processes=2)
    losses = [value for _, value in report["loss"]]
    assert losses == pytest.approx([value for _, value in whole[1]["loss"]], abs=1e-5)
    found, expected = tensors(tmp_path / "adapter"), tensors(whole[0])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)
    models.load(model_folder, adapter=tmp_path / "adapter")


def test_gpus_that_cannot_share_a_batch_are_told(model_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size = 4 cannot be shared equally by 3 GPUs: make it a multiple of 3"):
        finetuning.finetune(model_folder, data, adapter=tmp_path / "adapter", **SETTINGS)
