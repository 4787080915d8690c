"""NLL and KL on the original's answers equal those of a plain loop over plain logits; to itself a model has KL 0."""

import copy
import math

import pytest
import torch
from conftest import tiny_llama

from sdd_utils.base.files import file_sha256, read_json_lines, write_json_lines
from sdd_utils.steps import fidelity

ROWS = [
    {"id": f"r{i}", "instruction": f"What is {i} + {i}?" * (1 + i % 3), "context": "", "response": "x", "answer": ""}
    for i in range(3)
]
QUESTIONS = {row["id"]: row["instruction"] for row in ROWS}


@pytest.fixture(scope="module")
def answers(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "answers.jsonl"
    rows = fidelity.answer_questions(model_folder, QUESTIONS, path=path, max_new_tokens=7, batch_size=2)["greedy"]
    # a random model neither ends nor falls silent by itself
    return [rows[0], rows[1] | {"text": "Hello!", "finish": "stop"}, rows[2] | {"text": "", "finish": "length"}]


def plain(original, model, tokenizer, row):
    """The same sums from float64 softmaxes, one place after the other."""
    ids = tokenizer(row["prompt"] + row["text"])["input_ids"] + [tokenizer.eos_token_id] * (row["finish"] == "stop")
    start, nll, kl = len(tokenizer(row["prompt"])["input_ids"]), 0.0, 0.0
    with torch.no_grad():
        theirs, ours = (one(torch.tensor([ids])).logits[0].double().softmax(-1) for one in (original, model))
    for place in range(start, len(ids)):
        p, q = theirs[place - 1].tolist(), ours[place - 1].tolist()
        nll -= math.log(q[ids[place]])
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return [nll, kl, len(ids) - start]


def test_sums_are_those_of_a_plain_loop(model, tokenizer, answers):
    other = tiny_llama(tokenizer, layers=4)
    found = fidelity.measure_fidelity(model, other, tokenizer, {"d": answers})["d"]
    expected = [plain(model, other, tokenizer, row) for row in answers]
    for own, wanted in zip(found["documents"], expected, strict=True):
        assert own == pytest.approx(wanted, rel=1e-4)
    nll, kl, tokens = (sum(column) for column in zip(*expected, strict=True))
    assert (found["tokens"], found["documents"][2]) == (tokens, [0.0, 0.0, 0])
    assert (found["nll"], found["kl"]) == pytest.approx((nll / tokens, kl / tokens), rel=1e-4)
    assert found["kl"] > 0.01


def test_an_answer_ends_with_the_token_that_closed_it(model, tokenizer):
    """Of the several that may end a turn; where a row does not say, with the one that the chat template prints."""
    closed = {"prompt": "Hi", "text": "ok", "finish": "stop", "end_token": 7}
    expected = []
    for row, end in ((closed, 7), (closed | {"end_token": None}, tokenizer.convert_tokens_to_ids("<|im_end|>"))):
        prompt, ids = (tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "text"))
        with torch.no_grad():
            log_probs = model(torch.tensor([[*prompt, *ids, end]])).logits[0, len(prompt) - 1 :].log_softmax(-1)
        expected.append(-float(log_probs[range(3), [*ids, end]].sum()))
        found = fidelity.measure_fidelity(model, model, tokenizer, {"d": [row]})["d"]["documents"][0]
        assert (found[0], found[2]) == (pytest.approx(expected[-1], rel=1e-4), 3)
    assert expected[0] != pytest.approx(expected[1], rel=1e-2)


def test_answers_hold_no_thinking(model_folder, tmp_path, monkeypatch):
    texts = {"r0": "<think>Hm.</think>\n\nIt is 0.", "r1": "<think>Hm, then", "r2": "It is 4."}
    raw = [{"id": id_, "text": text, "finish": "stop", "n_tokens": 3, "end_token": 7} for id_, text in texts.items()]
    monkeypatch.setattr(fidelity, "generate_file", lambda *_, **__: raw + raw)
    rows = fidelity.answer_questions(model_folder, QUESTIONS, path=tmp_path / "texts.jsonl")["greedy"]
    assert [row["text"] for row in rows] == ["It is 0.", "", "It is 4."]
    assert [(row["finish"], row["end_token"]) for row in rows] == [("stop", 7), ("length", None), ("stop", 7)]


def test_likelihood_of_a_response_is_that_of_a_plain_loop(model, tokenizer, model_folder, tmp_path, monkeypatch):
    sets = {"original": ["A short answer.", "Seven."], "distilled": ["A short answer.", "It is seven."]}
    read, plain_nll = [], fidelity._mean_nll
    monkeypatch.setattr(fidelity, "_mean_nll", lambda *a: read.append(a) or plain_nll(*a))
    found = fidelity.response_nll(model_folder, ROWS[:2], sets, path=tmp_path / "likelihoods.jsonl")
    assert len(read) == 3  # the response that the sets share is read once
    assert fidelity.response_nll(model_folder, ROWS[:2], sets, path=tmp_path / "likelihoods.jsonl") == found
    assert len(read) == 3  # and none of them again
    asked = [(row, text, nll) for own in sets for row, text, nll in zip(ROWS[:2], sets[own], found[own], strict=True)]
    for row, text, nll in asked:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}], tokenize=False, add_generation_prompt=True
        )
        total, _, tokens = plain(model, model, tokenizer, {"prompt": prompt, "text": text, "finish": "stop"})
        assert nll == pytest.approx(total / tokens, rel=1e-4)


def test_a_response_longer_than_the_context_is_read_from_the_right(model, tokenizer):
    prompt, answered = list(range(5, 25)), list(range(30, 60))
    log_probs = model(torch.tensor([prompt + answered])[:, -40:]).logits[0].log_softmax(-1)
    expected = -log_probs[9:39].gather(1, torch.tensor(answered)[:, None]).mean()
    model.config.max_position_embeddings = 40
    assert fidelity._mean_nll(model, prompt, answered) == pytest.approx(float(expected), rel=1e-5)


def test_a_prompt_that_was_too_long_to_be_answered_counts_for_nothing(model, tokenizer, answers):
    unanswered = answers[0] | {"text": "", "finish": "too long", "prompt": "x" * 5000}
    with_it, without = (
        fidelity.measure_fidelity(model, model, tokenizer, {"d": rows})["d"]
        for rows in ([*answers, unanswered], answers)
    )
    assert with_it["documents"] == [*without["documents"], [0.0, 0.0, 0]]
    assert (with_it["nll"], with_it["tokens"]) == (without["nll"], without["tokens"])


def test_logits_of_all_tokens_are_read_as_those_of_the_last(model, monkeypatch):
    """Some models give the logits of every token, whatever they are asked to keep."""
    expected, plain_forward = fidelity._mean_nll(model, [5, 6, 7], [8, 9]), model.forward
    monkeypatch.setattr(model, "forward", lambda *args, logits_to_keep=0, **kw: plain_forward(*args, **kw))
    assert fidelity._mean_nll(model, [5, 6, 7], [8, 9]) == pytest.approx(expected, rel=1e-5)


def test_a_model_has_no_divergence_from_itself(model, tokenizer, answers):
    found = fidelity.measure_fidelity(model, copy.deepcopy(model), tokenizer, {"d": answers[:2]})["d"]
    assert found["kl"] == 0
    assert found["nll"] == pytest.approx(
        sum(plain(model, model, tokenizer, row)[0] for row in answers[:2]) / found["tokens"]
    )


def test_greedy_and_sampled_answers_to_a_question_stand_at_the_same_place(model_folder, tmp_path):
    """Rows finish in an order of their own, the longest first: what is read side by side must not follow it."""
    settings = {"path": tmp_path / "texts.jsonl", "temperature": 2.0, "max_new_tokens": 6, "batch_size": 2}
    answers = fidelity.answer_questions(model_folder, QUESTIONS, **settings)
    finished = [row["id"] for row in read_json_lines(tmp_path / "texts.jsonl")]
    assert finished != [*QUESTIONS, *(f"{id_} sampled" for id_ in QUESTIONS)]
    path = write_json_lines(tmp_path / "d.jsonl", answers["greedy"] + answers["sampled"])
    written = {"sha256": file_sha256(path)}
    greedy, sampled = (fidelity.read_answers(path, sampled=choice, **written) for choice in (False, True))
    assert [row["id"] for row in greedy] == [*QUESTIONS]
    assert [row["id"] for row in sampled] == [f"{id_} sampled" for id_ in QUESTIONS]


def test_greedy_answers_are_the_likeliest_tokens(model, tokenizer, model_folder, tmp_path):
    sampling = {"temperature": 1.5, "seed": 1, "max_new_tokens": 5, "batch_size": 2}
    answers = fidelity.answer_questions(
        model_folder, {"r0": QUESTIONS["r0"]}, path=tmp_path / "texts.jsonl", **sampling
    )
    (row,), (sampled,) = answers["greedy"], answers["sampled"]
    path = write_json_lines(tmp_path / "d.jsonl", [row, sampled])
    written = {"sha256": file_sha256(path)}
    assert fidelity.read_answers(path, **written) == [row]
    assert fidelity.read_answers(path, sampled=True, **written) == [sampled]
    with pytest.raises(ValueError, match=r"d.jsonl is not what 02 wrote: run notebooks/02_pruning.ipynb at block"):
        fidelity.read_answers(path, sha256="of another model's answers")
    assert row["text"] != sampled["text"]
    assert row["prompt"].endswith("assistant\n")
    assert row["question"] == sampled["question"] == QUESTIONS["r0"]
    ids = tokenizer(row["prompt"])["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith(row["text"])


def test_silence_and_missing_answers_are_told(model, tokenizer, answers, tmp_path):
    with pytest.raises(ValueError, match="every answer of the original to d is empty: use an instruct model"):
        fidelity.measure_fidelity(model, model, tokenizer, {"d": answers[2:]})
    with pytest.raises(FileNotFoundError, match="d.jsonl does not exist yet: run the notebook that makes it"):
        fidelity.read_answers(tmp_path / "d.jsonl", sha256="")
