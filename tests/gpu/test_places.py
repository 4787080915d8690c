"""What runs on a card puts every tensor there: the same answers as on the CPU, by a model that says it is on a card."""

import tempfile
from pathlib import Path

import pytest
import torch
from gpu import generating, scoring, training
from gpu.elsewhere import on_a_card
from gpu.measure import Setup
from lm_eval.tasks import TaskManager

from sdd_utils.engine import decoding, kv_slots, lm_eval_model, probe
from sdd_utils.engine.lm_eval_task import evaluate_task
from sdd_utils.models import store
from sdd_utils.steps import evaluation, fidelity, lora_training, pruning, similarity

SAMPLED = {"temperature": 0.9, "top_p": 0.8, "top_k": 20, "seed": 1, "max_new_tokens": 6}


def decoded(folder, *, engine=decoding.decode, sampling=None) -> dict:
    model, tokenizer = store.load_model(folder)
    texts = {str(i): tokenizer("x" * i + " and so on")["input_ids"] for i in (1, 5, 9)}
    draw = decoding.sampler(**sampling) if sampling else decoding.GREEDY
    return dict(engine(model, texts, batch_size=2, max_new_tokens=6, ends=[0], draw=draw))


def slot_gap(folder) -> bool:
    model, _ = store.load_model(folder)
    return generating.slot_difference(model, (3, 9, 20)) < 1e-3


def served(folder) -> list[bool]:
    model, _ = store.load_model(folder)
    return [decoding.supports(model), probe.reads_padding(model), probe.ignores_filling(model)]


def scored(folder) -> list:
    manager = TaskManager(include_path=str(evaluation.TASKS), include_defaults=False)
    model, tokenizer = store.load_model(folder)
    lm = lm_eval_model.SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device=str(model.device))
    asked = {"manager": manager, "limit": 2, "shots": 1, "chat": False}
    results = [evaluate_task(lm, task, **asked) for task in ("facts", "pydoc_gold")]
    return [sample["choices"]["nats"] for one in results for sample in scoring._samples(one)]


def compared(folder) -> list:
    models, tokenizer, rows = scoring.loaded(
        Setup(model=str(folder), pruned=folder, scratch=folder, rate=1.0, size={"answers": 2})
    )
    nll = fidelity._mean_nll(models[0], *fidelity.token_ids(tokenizer, rows[0]))
    return [nll, *fidelity.measure_fidelity(*models, tokenizer, {"rows": rows})["rows"]["documents"]]


def mapped(folder) -> list:
    model, tokenizer = store.load_model(folder)
    found = similarity.measure_similarity(
        model, tokenizer, ["one text", "another, longer"], batch_size=2, max_length=64
    )
    return [*found.map.ravel(), *found.block_influence]


def pruned(folder) -> list:
    model, tokenizer = store.load_model(folder)
    pruning.remove_block(model, start=1, block_size=2)
    with tempfile.TemporaryDirectory() as scratch:
        store.save_model(model, tokenizer, folder=Path(scratch) / "model", parent="", recipe={})
    return probe.plain_logits(model, [5, 6, 7]).flatten().tolist()


WORK = {
    "decoding": decoded,
    "sampling": lambda folder: decoded(folder, sampling=SAMPLED),
    "transformers' generate": lambda folder: decoded(folder, engine=decoding.generate_batches, sampling=SAMPLED),
    "slots": slot_gap,
    "probes": served,
    "lm-eval": scored,
    "fidelity": compared,
    "similarity": mapped,
    "pruning": pruned,
}


@pytest.mark.parametrize("name", WORK)
def test_on_a_card_it_comes_to_the_same(name, model_folder):
    expected = WORK[name](model_folder)
    with on_a_card():
        found = WORK[name](model_folder)
    if isinstance(expected, dict):
        assert found == expected
    else:
        flat = [
            [value for row in rows for value in (row if isinstance(row, list) else [row])]
            for rows in (
                found if isinstance(found, list) else [found],
                expected if isinstance(expected, list) else [expected],
            )
        ]
        assert flat[0] == pytest.approx(flat[1], abs=1e-4)


def test_an_adapter_beside_the_weights_and_merged_into_them(model_folder, tmp_path):
    setup = Setup(model=str(model_folder), pruned=model_folder, scratch=tmp_path, rate=1.0, size={"train_batch": 2})
    lora_training.train(training.job_of(setup, "adapter"), training.data_of(setup, 2))
    beside, _ = store.load_model(model_folder, adapter=tmp_path / "adapter")
    expected = probe.plain_logits(beside, [5, 6, 7])
    with on_a_card():
        beside, _ = store.load_model(model_folder, adapter=tmp_path / "adapter")
        merged, _, lost = store.load_merged(model_folder, adapter=tmp_path / "adapter", dtype=torch.bfloat16)
        assert merged.device.type == "cuda"
        found = [probe.plain_logits(model, [5, 6, 7]).float().cpu() for model in (beside, merged)]
    assert 0 <= lost < 1
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
    assert probe.difference(found[1], expected) < probe.COARSE


def test_a_tensor_on_the_wrong_device_is_seen(model_folder, monkeypatch):
    with on_a_card():
        model, _ = store.load_model(model_folder)
        assert model.device.type == "cuda"
        ids = torch.tensor([[1, 2]])
        with pytest.raises(RuntimeError, match="on the card and on the CPU"):
            model(ids)
        assert model(ids.to(model.device)).logits.device.type == "cuda"
    plain, planted = kv_slots.SlotCache.arguments, {}

    def arguments(self, *args, **kwargs):
        return plain(self, *args, **kwargs) | planted

    monkeypatch.setattr(kv_slots.SlotCache, "arguments", arguments)
    with on_a_card():
        decoded(model_folder)
        planted["position_ids"] = torch.zeros(1, 1, dtype=torch.long)
        with pytest.raises(RuntimeError, match="on the card and on the CPU"):
            decoded(model_folder)
