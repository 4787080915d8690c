"""Arms that learn from the unpruned model: their losses are those of plain passes, their budgets those of SFT."""

import pytest
import torch
from conftest import tiny_llama
from datasets import Dataset
from safetensors.torch import load_file
from trl import SFTTrainer

from sdd_utils.data.arms import FORWARD_KL, REVERSE_KL
from sdd_utils.engine import decoding
from sdd_utils.steps import lora_training, on_policy, teacher, trainers

SETTINGS = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_targets": "all-linear", "learning_rate": 1e-2}
SETTINGS |= {"epochs": 2, "batch_size": 4, "seed": 3, "trained_tokens": 0}
SCHEDULE = {name: SETTINGS[name] for name in ("batch_size", "seed", "trained_tokens")}


@pytest.fixture
def data():
    """Ten rows of 9 to 36 tokens: three steps an epoch, the last one of two rows."""
    lengths = range(9, 37, 3)
    masks = [[0] * 4 + [1] * (length - 4) for length in lengths]
    return Dataset.from_dict({"input_ids": [[*range(5, 5 + n)] for n in lengths], "completion_mask": masks})


@pytest.fixture
def original(tokenizer, tmp_path):
    """The unpruned model: another one than that of `model_folder`."""
    tiny_llama(tokenizer, layers=3).save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture
def taught(original, data, tmp_path):
    teacher.write(original, {"original": list(data)}, folder=tmp_path / "teacher")
    return {"loss": FORWARD_KL, "original": str(original), "teacher": str(tmp_path / "teacher")}


def job_of(folder, adapter, taught, **changes):
    return {
        "folder": str(folder), "adapter": str(adapter), "key": "k", "settings": SETTINGS | changes, "taught": taught
    }  # fmt: skip


def weights(adapter):
    return load_file(adapter / "adapter_model.safetensors")


def log_probs(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)


def dying(monkeypatch, step):
    plain = SFTTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", training_step)


# Forward KL


def test_the_first_loss_is_the_coarse_divergence_of_plain_passes(tokenizer, model_folder, taught, data, tmp_path):
    report = lora_training.train(job_of(model_folder, tmp_path / "a", taught), data)
    student, original, total, tokens = tiny_llama(tokenizer), tiny_llama(tokenizer, layers=3), 0.0, 0
    for row in lora_training.schedule(data, epochs=2, **SCHEDULE).select(range(4)):
        places = slice(row["completion_mask"].index(1) - 1, None)
        p, q = (log_probs(model, row["input_ids"])[places].exp() for model in (original, student))
        for own, other in zip(p, q, strict=True):
            kept = own.argsort(descending=True)[: teacher.K]
            pairs = [(own[kept], other[kept]), (1 - own[kept].sum(), 1 - other[kept].sum())]
            total += sum(float((a * (a / b).log()).sum()) for a, b in pairs)
            tokens += 1
    assert report["loss"][0][1] == pytest.approx(total / tokens, rel=2e-3)


def test_rows_steps_and_tokens_are_those_of_cross_entropy(model_folder, taught, data, tmp_path):
    plain = lora_training.train(job_of(model_folder, tmp_path / "sft", {}), data)
    taught = lora_training.train(job_of(model_folder, tmp_path / "kd", taught), data)
    assert taught | {"loss": []} == plain | {"loss": []}
    assert [step for step, _ in taught["loss"]] == [step for step, _ in plain["loss"]]
    assert weights(tmp_path / "kd").keys() == weights(tmp_path / "sft").keys()


def test_who_agrees_with_the_original_has_nothing_to_learn(original, taught, data, tmp_path):
    report = lora_training.train(job_of(original, tmp_path / "a", taught), data)
    assert report["loss"][0][1] < 1e-5  # half precision rounds what is kept; later Adam follows that rounding


def test_rows_read_one_by_one_learn_as_rows_end_to_end_do(model_folder, taught, data, tmp_path, monkeypatch):
    together = lora_training.train(job_of(model_folder, tmp_path / "together", taught), data)
    monkeypatch.setattr(lora_training, "keeps_rows_apart", lambda model: False)
    alone = lora_training.train(job_of(model_folder, tmp_path / "alone", taught), data)
    torch.testing.assert_close(torch.tensor(alone["loss"]), torch.tensor(together["loss"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(tmp_path / "alone"), weights(tmp_path / "together"), atol=1e-4, rtol=1e-3)


def test_rows_without_distributions_are_one_sentence(model_folder, taught, data, tmp_path):
    more = Dataset.from_list([*data, {"input_ids": [9, 8, 7], "completion_mask": [0, 1, 1]}])
    with pytest.raises(ValueError, match="1 of 11 rows have no distributions .*: run notebooks/03_self_data"):
        lora_training.train(job_of(model_folder, tmp_path / "a", taught), more)


# On-policy


@pytest.fixture
def answered(original):
    return {"loss": REVERSE_KL, "original": str(original)}


def kept_batches(monkeypatch):
    seen, plain = [], on_policy.OnPolicyTrainer._answered

    def spy(self, batches):
        seen.append(plain(self, batches))
        return seen[-1]

    monkeypatch.setattr(on_policy.OnPolicyTrainer, "_answered", spy)
    return seen


def rows_of(batches):
    return [
        (ids.tolist(), int((labels != -100).sum()))
        for batch in batches
        for ids, labels in trainers.split_rows(batch, batch["input_ids"][0], batch["labels"][0])
    ]


def test_the_first_loss_is_the_divergence_on_the_students_answers(
    tokenizer, model_folder, answered, data, tmp_path, monkeypatch
):
    seen = kept_batches(monkeypatch)
    report = lora_training.train(job_of(model_folder, tmp_path / "a", answered), data)
    student, original, total, tokens = tiny_llama(tokenizer), tiny_llama(tokenizer, layers=3), 0.0, 0
    asked = lora_training.schedule(data, epochs=2, **SCHEDULE).select(range(4))
    for (ids, trained), row in zip(rows_of(seen[0]), asked, strict=True):
        assert ids[:4] == row["input_ids"][:4]  # the prompt
        assert 0 < trained == len(ids) - 4 <= len(row["input_ids"]) - 4
        q, p = (log_probs(model, ids)[3:] for model in (student, original))
        total, tokens = total + float((q.exp() * (q - p)).sum()), tokens + trained
    assert report["loss"][0][1] == pytest.approx(total / tokens, rel=1e-4)
    assert report["steps"] == 6
    assert report["trained_tokens"] == sum(trained for batches in seen for _, trained in rows_of(batches))


def test_answers_are_draws_of_the_student_as_it_is_then(model_folder, answered, data, tmp_path, monkeypatch):
    """Greedy draws show it: each answer is what the adapter of that step would say."""
    monkeypatch.setattr(decoding, "sampler", lambda **_: decoding.GREEDY)
    checked, plain = [], on_policy.OnPolicyTrainer._answered

    def check(self, batches):
        batches = plain(self, batches)
        model = self.model.get_base_model()
        for ids, trained in rows_of(batches):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), use_cache=False).logits[0]
            likeliest = logits.argmax(dim=-1).tolist()
            checked.append(ids[len(ids) - trained :] == likeliest[len(ids) - trained - 1 : -1] or not trained)
        return batches

    monkeypatch.setattr(on_policy.OnPolicyTrainer, "_answered", check)
    lora_training.train(job_of(model_folder, tmp_path / "a", answered, learning_rate=0.1), data)
    assert len(checked) == 24
    assert all(checked)


def test_no_more_tokens_than_sfts_are_trained_and_what_is_left_over_may_be_used_later(
    model_folder, answered, data, tmp_path, monkeypatch
):
    given, plain = [], decoding.engine_for

    def engine_for(model, *, batch_size):
        decode, rows = plain(model, batch_size=batch_size)

        def short_at_first(model, prompts, *, max_new_tokens, **settings):
            for id_, new in decode(model, prompts, max_new_tokens=max_new_tokens, **settings):
                given.append(max_new_tokens)
                yield id_, new[:2] if len(given) <= 4 else (new + [9] * max_new_tokens)[:max_new_tokens]

        return short_at_first, rows

    monkeypatch.setattr(decoding, "engine_for", engine_for)
    seen = kept_batches(monkeypatch)
    report = lora_training.train(job_of(model_folder, tmp_path / "a", answered), data)
    plan = lora_training.schedule(data, epochs=2, **SCHEDULE)
    allowed = [sum(map(sum, plan["completion_mask"][i : i + 4])) for i in range(0, 24, 4)]
    trained = [sum(n for _, n in rows_of(batches)) for batches in seen]
    assert trained[0] == 8
    spare = allowed[0] - 8
    assert trained[1] == allowed[1] + spare // 4 * 4
    assert sum(allowed) - 4 * 4 <= report["trained_tokens"] == sum(trained) <= sum(allowed)


def test_an_interrupted_training_answers_as_the_whole_one_does(model_folder, answered, data, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training, "SAVE_STEPS", 2)
    whole = lora_training.train(job_of(model_folder, tmp_path / "whole", answered), data)
    job = job_of(model_folder, tmp_path / "cut", answered)
    with monkeypatch.context() as context:
        dying(context, 5)
        with pytest.raises(KeyboardInterrupt):
            lora_training.train(job, data)
    assert lora_training.train(job, data) == whole
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_answers_that_are_read_one_by_one_train_the_same(model_folder, answered, data, tmp_path, monkeypatch):
    together = lora_training.train(job_of(model_folder, tmp_path / "together", answered, epochs=1), data)
    monkeypatch.setattr(lora_training, "keeps_rows_apart", lambda model: False)
    alone = lora_training.train(job_of(model_folder, tmp_path / "alone", answered, epochs=1), data)
    assert alone["steps"] == together["steps"] == 3
    assert alone["trained_tokens"] <= sum(map(sum, data["completion_mask"]))
    assert all(loss > 0 for _, loss in alone["loss"])


def test_several_gpus_are_refused(model_folder, answered, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="on_policy trains on one GPU, and 2 are visible: name one in CUDA_VISIBLE"):
        lora_training.run(model_folder, data, adapter=tmp_path / "a", key="k", settings=SETTINGS, taught=answered)
