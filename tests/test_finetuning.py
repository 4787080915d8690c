"""Labels mask the prompt and nothing else; both arms get the same budget; a finished adapter is not trained twice."""

import pytest
import torch
from trl import SFTTrainer

from sdd_utils import finetuning
from sdd_utils.generation import render

ROWS = [
    {"id": str(i), "instruction": f"Say {i}.", "context": "", "response": "abc" * (1 + i % 2), "answer": ""}
    for i in range(6)
]
DISTILLED = [{"id": row["id"], "response": "hello " * (1 + int(row["id"]) % 3)} for row in ROWS]
SETTINGS = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_targets": "all-linear", "learning_rate": 1e-2}
SETTINGS |= {"epochs": 1, "batch_size": 2, "seed": 3}


def test_mask_covers_exactly_the_prompt_and_the_end_token_is_trained(tokenizer):
    row = ROWS[0]
    encoded = finetuning.encode(tokenizer, row, "an answer")
    ids, mask = encoded["input_ids"], encoded["completion_mask"]
    prompt = render(tokenizer, [{"role": "user", "content": row["instruction"]}])
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if not m]) == prompt
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "an answer<|im_end|>"
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert mask[-1] == 1


def test_the_trainer_sees_those_labels(model_folder, tokenizer, tmp_path, monkeypatch):
    seen = []
    plain = SFTTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.append({name: tensor.clone() for name, tensor in inputs.items() if torch.is_tensor(tensor)})
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", spy)
    sets = finetuning.paired_sets(tokenizer, ROWS, DISTILLED, max_length=500)
    finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "a", **SETTINGS)
    # A batch is one sequence whose positions start anew with every row.
    rows = [
        row
        for batch in seen
        for row in torch.tensor_split(batch["labels"][0], (batch["position_ids"][0] == 0).nonzero().flatten()[1:])
    ]
    trained = sorted(tuple(row[row != -100].tolist()) for row in rows)
    expected = [
        tuple(i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m) for row in sets["sft"]
    ]
    assert trained == sorted(expected)


def test_both_arms_hold_the_same_rows_and_long_ones_leave_both(tokenizer):
    long = [DISTILLED[0] | {"response": "x" * 400}, *DISTILLED[1:]]
    sets = finetuning.paired_sets(tokenizer, ROWS, long, max_length=300)
    assert len(sets["sft"]) == len(sets["self_data_ft"]) == 5
    for a, b in zip(sets["sft"], sets["self_data_ft"], strict=True):
        prompts = [[i for i, m in zip(r["input_ids"], r["completion_mask"], strict=True) if not m] for r in (a, b)]
        assert prompts[0] == prompts[1]
    with pytest.raises(ValueError, match="no training row fits into max_length = 3 tokens"):
        finetuning.paired_sets(tokenizer, ROWS, DISTILLED, max_length=3)


def test_equal_budgets_and_a_finished_adapter_is_found_again(model_folder, tokenizer, tmp_path, monkeypatch):
    sets = finetuning.paired_sets(tokenizer, ROWS, DISTILLED, max_length=500)
    reports = {arm: finetuning.finetune(model_folder, sets[arm], adapter=tmp_path / arm, **SETTINGS) for arm in sets}
    assert reports["sft"]["rows"] == reports["self_data_ft"]["rows"] == 6
    assert reports["sft"]["steps"] == reports["self_data_ft"]["steps"] == 3
    assert reports["sft"]["trained_tokens"] == sum(map(sum, sets["sft"]["completion_mask"]))
    monkeypatch.setattr(SFTTrainer, "train", lambda self, **_: pytest.fail("trained again"))
    again = finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "sft", **SETTINGS)
    assert again == reports["sft"]
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "sft", **SETTINGS | {"learning_rate": 1e-3})


def test_merged_adapter_is_the_adapted_model(model_folder, tokenizer, tmp_path):
    from peft import PeftModel

    from sdd_utils import models

    sets = finetuning.paired_sets(tokenizer, ROWS, DISTILLED, max_length=500)
    finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "a", **SETTINGS)
    base, _ = models.load(model_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = base(ids).logits.clone()
        adapted = PeftModel.from_pretrained(base, tmp_path / "a")(ids).logits
        merged = models.load(model_folder, adapter=tmp_path / "a", dtype=torch.float32)[0](ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-3)
