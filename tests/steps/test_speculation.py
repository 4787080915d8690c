"""Acceptance against sampling that is enumerated, and decoding with a draft against decoding without one."""

import copy
import shutil
from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sdd_utils.models import store
from sdd_utils.steps import fidelity, pruning, speculation, timing

QUESTIONS = {f"r{i}": f"What is {i} + {i}?" * (1 + i % 3) for i in range(3)}


@pytest.fixture(scope="module")
def answers(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "answers.jsonl"
    rows = fidelity.answer_questions(model_folder, QUESTIONS, path=path, max_new_tokens=7, batch_size=2)["greedy"]
    return {"a": rows[:2], "b": [rows[2], rows[0] | {"text": "", "finish": "length"}]}


@pytest.fixture
def draft(model):
    return pruning.remove_block(copy.deepcopy(model), start=2, block_size=1)


@pytest.fixture(scope="module")
def checkpoint(model_folder, tmp_path_factory):
    model, tokenizer = store.load_model(model_folder)
    cut = pruning.remove_block(model, start=2, block_size=1)
    folder = tmp_path_factory.mktemp("run") / "n1"
    return store.save_model(cut, tokenizer, folder=folder, parent=str(model_folder), recipe={})


def save_adapter(checkpoint, folder, *, seed):
    """A random adapter that changes every layer."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(store.load_model(checkpoint)[0], config).save_pretrained(folder)


def written(model, tokenizer, question, *, tokens):
    """The new tokens of a greedy answer, as transformers decodes it alone."""
    prompt = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    ids = prompt["input_ids"]
    return model.generate(ids, do_sample=False, max_new_tokens=tokens)[0, ids.shape[1] :].tolist()


def enumerated(p, q):
    """Every draw of the draft with its acceptance, and every draw after a rejection: (accepted, what is drawn)."""
    accepted, drawn = 0.0, [0.0] * len(p)
    rejected = [max(pv - qv, 0.0) for pv, qv in zip(p, q, strict=True)]
    for drafted, other in product(range(len(p)), repeat=2):
        stays = min(1.0, p[drafted] / q[drafted])
        replaced = rejected[other] / sum(rejected)
        accepted += q[drafted] * stays / len(p)
        drawn[drafted] += q[drafted] * stays / len(p)
        drawn[other] += q[drafted] * (1 - stays) * replaced
    return accepted, drawn


def test_accepted_mass_and_rest_are_those_of_enumerated_sampling_which_draws_from_the_original():
    p, q = torch.softmax(torch.randn((2, 5), generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    accepted, drawn = enumerated(p.tolist(), q.tolist())
    assert float(speculation.accepted_mass(p, q)) == pytest.approx(accepted)
    assert drawn == pytest.approx(p.tolist())
    together = torch.minimum(p, q) + (1 - accepted) * speculation.rest(p, q)
    assert together.tolist() == pytest.approx(p.tolist())


def test_acceptance_is_that_of_a_plain_loop(model, draft, tokenizer, answers):
    found = speculation.measure_acceptance(
        speculation.read_logits(model, tokenizer, answers), draft, tokenizer, answers
    )
    for name, rows in answers.items():
        sums = []
        for row in rows:
            prompt, answered = fidelity.token_ids(tokenizer, row)
            logits = [each(torch.tensor([prompt + answered])).logits[0].double() for each in (model, draft)]
            places = range(len(prompt) - 1, len(prompt) + len(answered) - 1)
            same = [int(logits[0][at].argmax() == logits[1][at].argmax()) for at in places]
            p, q = (own.softmax(dim=-1) for own in logits)
            mass = [sum(min(*pair) for pair in zip(p[at].tolist(), q[at].tolist(), strict=True)) for at in places]
            sums.append([sum(same), sum(mass), len(answered)])
        assert found[name]["documents"] == [pytest.approx(own, rel=1e-4) for own in sums]
        greedy, sampling, tokens = map(sum, zip(*sums, strict=True))
        assert 0 < sampling < tokens
        expected = (pytest.approx(greedy / tokens), pytest.approx(sampling / tokens, rel=1e-4), tokens)
        assert (
            *(found[name][measure] for measure in ("greedy_acceptance", "sampling_acceptance", "tokens")),
        ) == expected


def test_the_original_accepts_all_of_itself(model, tokenizer, answers):
    expected = speculation.read_logits(model, tokenizer, answers)
    for own in speculation.measure_acceptance(expected, model, tokenizer, answers).values():
        assert (own["greedy_acceptance"], own["sampling_acceptance"]) == (1.0, pytest.approx(1.0, rel=1e-5))


def test_a_measured_draft_is_not_measured_again_unless_its_adapter_changes(
    model_folder, checkpoint, answers, tmp_path, monkeypatch
):
    for seed, name in enumerate(("adapter", "other")):
        save_adapter(checkpoint, tmp_path / name, seed=seed)
    adapter, path, loaded, load = tmp_path / "adapter", tmp_path / "acceptance.jsonl", [], store.load_model
    drafts = {name: {"checkpoint": checkpoint, "adapter": own} for name, own in (("n1", None), ("tuned", adapter))}
    monkeypatch.setattr(store, "load_model", lambda *args, **kwargs: loaded.append(args) or load(*args, **kwargs))
    found = speculation.measure_drafts(model_folder, drafts, answers, path=path)
    assert len(loaded) == 3  # the original once
    assert found["n1"] != found["tuned"]
    assert speculation.measure_drafts(model_folder, drafts, answers, path=path) == found
    assert len(loaded) == 3
    shutil.copytree(tmp_path / "other", adapter, dirs_exist_ok=True)
    again = speculation.measure_drafts(model_folder, drafts, answers, path=path)
    assert len(loaded) == 5
    assert again["n1"] == found["n1"]
    assert again["tuned"] != found["tuned"]


@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
def test_decoding_with_a_draft_writes_the_same_texts_in_the_passes_that_follow_from_two(
    model, draft, tokenizer, draft_tokens
):
    limits = {"draft_tokens": draft_tokens, "max_new_tokens": 24}
    for helper in (draft, copy.deepcopy(model)):
        found = speculation.decode_with_draft(model, helper, tokenizer, [*QUESTIONS.values()], **limits)
        assert found["same_texts"] == found["prompts"] == 3
        assert found["passes"] == found["replayed_passes"] <= found["tokens"]
    assert found["greedy_acceptance"] == 1.0
    lengths = [len(written(model, tokenizer, question, tokens=24)) for question in QUESTIONS.values()]
    assert found["tokens"] == sum(lengths)
    assert found["passes"] == sum(-(-length // (draft_tokens + 1)) for length in lengths)  # a draft that is never wrong


def test_decoding_ends_with_the_end_token_also_where_it_was_drafted(model, tokenizer):
    text = written(model, tokenizer, "Hello?", tokens=12)
    model.generation_config.eos_token_id = text[4]
    length = text.index(text[4]) + 1
    helper = copy.deepcopy(model)
    found = speculation.decode_with_draft(model, helper, tokenizer, ["Hello?"], draft_tokens=3, max_new_tokens=12)
    assert (found["tokens"], found["same_texts"]) == (length, 1)
    assert found["passes"] == found["replayed_passes"] == -(-length // 4)


@pytest.mark.parametrize(
    ("agreed", "draft_tokens", "passes"),
    [
        ("1111", 2, 2),  # two and one's own, then the fourth, for which nothing is drafted: no room is left
        ("0000", 2, 4),
        ("1011", 3, 2),
        ("0111", 1, 3),
        ("", 3, 0),
    ],
)
def test_passes_are_replayed_token_by_token(agreed, draft_tokens, passes):
    same = [token == "1" for token in agreed]
    assert speculation.replayed_passes(same, draft_tokens=draft_tokens, max_new_tokens=4) == passes


def test_times_are_of_passes_of_either_model(model, draft):
    asked, plain_forward = [], type(model).forward

    def counted(self, *args, **kwargs):
        asked.append((self is draft, kwargs["input_ids"].shape[1]))
        return plain_forward(self, *args, **kwargs)

    for each in (model, draft):
        each.forward = counted.__get__(each)
    seconds = speculation.cost_of_passes(model, draft, draft_tokens=4)
    assert list(seconds) == ["original", "draft", "verification"]
    assert all(value > 0 for value in seconds.values())
    rounds = timing.WARM_UP + timing.ROUNDS
    assert asked[-3:] == [(False, 1), (True, 1), (False, 5)]
    assert [asked.count(turn) for turn in asked[-3:]] == [rounds] * 3
