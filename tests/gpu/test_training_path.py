"""A card trains by another path than a CPU: TRL's own loss, gradient checkpointing, a mask, shards; to the same end."""

import numpy as np
import pytest
import torch
from conftest import tiny_llama
from gpu import training
from gpu.measure import Setup, computing_in
from safetensors.torch import load_file

from sdd_utils.steps import lora_training


@pytest.fixture
def setup(tokenizer, tmp_path):
    """With tied embeddings, as SmolLM2 has them: FSDP shards these in a unit of their own."""
    folder = tmp_path / "model"
    tiny_llama(tokenizer, tie_word_embeddings=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Setup(model=str(folder), pruned=folder, scratch=tmp_path, rate=1.0, size={"train_batch": 4})


def trained(setup, name: str, data) -> tuple[np.ndarray, dict]:
    report = lora_training.train(training.job_of(setup, name), data)
    return training.losses_of(report), load_file(setup.scratch / name / "adapter_model.safetensors")


def test_a_cards_path_has_the_losses_and_the_adapter_of_a_cpus(setup):
    data = training.data_of(setup, 8)
    losses, adapter = trained(setup, "cpu", data)
    with training.as_on_a_card():
        found, weights = trained(setup, "card", data)
    assert len(found) == 2
    np.testing.assert_allclose(found, losses, atol=1e-5)
    torch.testing.assert_close(weights, adapter, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_one_process_that_shards_has_the_losses_of_one_that_does_not(setup, dtype, most):
    data = training.data_of(setup, 8)
    with computing_in(dtype):
        losses, _ = trained(setup, "alone", data)
        report, seen = training.sharded(setup, "sharded", data)
    np.testing.assert_allclose(training.losses_of(report), losses, atol=most)
    assert seen["whole"] == 0
    assert report["steps"] == 2
    assert len(seen["ends"]) in {2, 4}  # a CPU reads a step of long rows in two passes
