"""Scores: shared contexts give lm-eval's own log-likelihoods; offline tasks load; estimates are the bootstrap's."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_llama
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AddedToken

from sdd_utils.base import choices
from sdd_utils.data.rows import load_rows
from sdd_utils.engine import decoding, lm_eval_model, lm_eval_task, probe
from sdd_utils.engine.lm_eval_model import group_by_prefix
from sdd_utils.models import chat_format, store
from sdd_utils.steps import evaluation


def requests():
    rng = np.random.default_rng(0)
    for group in range(7):
        context = rng.integers(0, 256, size=3 + 5 * group).tolist()
        for _ in range(2 + group % 3):
            yield (("context", "choice"), context, rng.integers(0, 256, size=rng.integers(1, 6)).tolist())


def test_shared_contexts_give_the_log_likelihoods_of_hflm(model, tokenizer):
    asked = list(requests())
    np.random.default_rng(1).shuffle(asked)
    settings = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 3, "device": "cpu"}
    expected = HFLM(**settings)._loglikelihood_tokens(asked, disable_tqdm=True)
    found = lm_eval_model.SharedContextLM(**settings)._loglikelihood_tokens(asked, disable_tqdm=True)
    np.testing.assert_allclose([x[0] for x in found], [x[0] for x in expected], atol=1e-3)
    assert [x[1] for x in found] == [x[1] for x in expected]


def test_openings_that_contexts_share_are_read_once_and_change_no_log_likelihood(model, tokenizer, monkeypatch):
    rng = np.random.default_rng(2)
    shots = [rng.integers(0, 256, size=length).tolist() for length in (260, 300)]
    few = [(key, shots[len(context) % 2] + context, choice) for key, context, choice in requests()]
    asked = [*few, *requests()]
    rng.shuffle(asked)
    settings = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 3, "device": "cpu"}
    expected = HFLM(**settings)._loglikelihood_tokens(asked, disable_tqdm=True)
    shared = lm_eval_model.SharedContextLM(**settings)
    assert shared._shares_contexts()  # before the spy, as it reads an opening of its own
    openings, plain = [], lm_eval_model.SharedContextLM._read_opening
    spy = lambda self, opening: openings.append(list(opening)) or plain(self, opening)  # noqa: E731
    monkeypatch.setattr(lm_eval_model.SharedContextLM, "_read_opening", spy)
    found = shared._loglikelihood_tokens(asked, disable_tqdm=True)
    np.testing.assert_allclose([x[0] for x in found], [x[0] for x in expected], atol=1e-3)
    assert [x[1] for x in found] == [x[1] for x in expected]
    assert sorted(openings, key=len) == [[], *shots]


def test_contexts_that_share_too_little_are_read_whole():
    opening = tuple(range(300))
    alike, apart = [(*opening, 500 + i) for i in range(3)], [(*range(300 + i, 350 + 2 * i),) for i in range(3)]
    assert list(group_by_prefix([*alike, *apart])) == [(opening, alike), ((), apart[::-1])]
    assert list(group_by_prefix(alike[:2])) == [((), alike[:2])]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_choice_at_the_end_of_the_context_does_not_depend_on_the_rows_beside_it(tokenizer, batch_size):
    """Each choice cuts its own context, as in HFLM: here those of three do, by different lengths."""
    model = tiny_llama(tokenizer)
    model.config.max_position_embeddings = 40
    context, choices = [*range(60, 98)], [[5], [5, 6, 7], [*range(9)], [8, 9, 10, 11, 12]]
    asked = [(("c", str(choice)), context, choice) for choice in choices] + [(("d", "e"), [3, 4], [*range(20, 45)])]
    settings = {"pretrained": model, "tokenizer": tokenizer, "device": "cpu"}
    assert lm_eval_model.SharedContextLM(**settings).max_length == 40
    expected = [HFLM(**settings, batch_size=1)._loglikelihood_tokens([one], disable_tqdm=True)[0][0] for one in asked]
    found = lm_eval_model.SharedContextLM(**settings, batch_size=batch_size)
    scores = found._loglikelihood_tokens(asked, disable_tqdm=True)
    np.testing.assert_allclose([score for score, _ in scores], expected, atol=1e-3)


def test_generated_answers_are_those_of_hflm(model, tokenizer):
    settings = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 3, "device": "cpu"}
    opening = "a text that all requests share, "
    asked = [{"until": [stop], "max_gen_toks": 20 + 4 * n} for n, stop in enumerate(["no such text", "\n", "aa"])]
    alphabet = "ab\ncdefgh"
    contexts = [opening + alphabet[i % 8 :] + alphabet[: i % 5] for i in range(12)]
    stops = model_stops(HFLM(**settings), contexts)
    asked += [{"until": [stop], "max_gen_toks": 24, "do_sample": False} for stop in stops]
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(context, gen), idx=0)
        for context in contexts
        for gen in asked
    ]
    expected = HFLM(**settings).generate_until(requests, disable_tqdm=True)
    found = lm_eval_model.SharedContextLM(**settings).generate_until(requests, disable_tqdm=True)
    assert found == expected
    assert len({len(text) for text in expected}) > 3, "the comparison needs texts that stop early"


def model_stops(lm, contexts: list[str]) -> list[str]:
    """Pairs of characters that the model does write, so that they stop some texts in the middle."""
    free = {"until": ["no such text"], "max_gen_toks": 24}
    request = Instance(request_type="generate_until", doc={}, arguments=(contexts[0], free), idx=0)
    (text,) = lm.generate_until([request], disable_tqdm=True)
    return [text[8:10], text[15]]


def measured_by_hand(model, tokenizer, context: str, choices: list[str], label: int):
    """(accuracy, choice probability, bits per byte) of a question, each choice read by itself in one plain pass."""
    start = tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"]  # lm-eval scores white space at its end
    nats = []
    for choice in choices:
        ids = tokenizer(context + choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats.append(sum(float(log_probs[place - 1, ids[place]]) for place in range(len(start), len(ids))))
    per_byte = np.exp([value / len(choice.encode()) for value, choice in zip(nats, choices, strict=True)])
    lengths = [len(choice.strip()) for choice in choices]  # lm-eval's own accuracy does not count the space
    right = np.argmax(np.array(nats) / lengths) == label
    bits = -nats[label] / np.log(2) / len(choices[label].encode())
    return float(right), per_byte[label] / per_byte.sum(), bits


def test_measures_of_a_multiple_choice_task_are_those_of_plain_passes(model, tokenizer):
    from sdd_utils.tasks import facts

    settings = {"tasks": {"facts": 6}, "shots": {}, "chat_tasks": [], "batch_size": 4}
    score = dict(evaluation.score_loaded_model(model, tokenizer, **settings))["facts"]
    assert (score["metric"], score["chance"], score["n"]) == ("acc_norm", 0.25, 6)
    expected = np.array([
        measured_by_hand(model, tokenizer, row["text"], [f" {choice}" for choice in row["choices"]], row["label"])
        for row in facts.questions()[:6]
    ])  # fmt: skip
    for name, values in zip(("accuracy", "choice_probability", "gold_bits_per_byte"), expected.T, strict=True):
        assert score[name]["documents"] == pytest.approx(values.tolist(), rel=1e-4), name
        assert score[name]["value"] == pytest.approx(values.mean(), rel=1e-4)
        assert score[name]["stderr"] == pytest.approx(values.std(ddof=1) / np.sqrt(6), rel=1e-3)
    assert score["accuracy"]["value"] == pytest.approx(score["all"]["acc_norm,none"])
    kept = choices.unpacked(score["choices"])
    assert [choices.gold_bits_per_byte(one) for one in kept] == score["gold_bits_per_byte"]["documents"]
    assert [choices.margin(one) for one in kept] == score["margin"]["documents"]


def test_gold_answers_are_scored_whole_in_the_chat_format(model, tokenizer):
    settings = {"tasks": {"pydoc_gold": 3, "gsm_symbolic_gold": 2}, "shots": {}, "batch_size": 4}
    scores = dict(evaluation.score_loaded_model(model, tokenizer, chat_tasks=[*settings["tasks"]], **settings))
    for name, score in scores.items():
        assert ("accuracy" in score, "choice_probability" in score, score["chance"]) == (False, False, 0.0)
        rows = load_rows(name.removesuffix("_gold"), split="test", rows=score["n"])
        for row, bits in zip(rows, score["gold_bits_per_byte"]["documents"], strict=True):
            context = chat_format.render(tokenizer, [{"role": "user", "content": row["instruction"]}])
            *_, expected = measured_by_hand(model, tokenizer, context, [row["response"]], 0)
            assert bits == pytest.approx(expected, rel=1e-4)
        assert score["gold_bits_per_byte"]["value"] == pytest.approx(score["all"]["gold_bits_per_byte,none"])


def test_a_task_that_was_scored_before_a_kill_is_read_and_others_are_scored(model_folder, tmp_path, monkeypatch):
    settings = {"shots": {}, "chat_tasks": [], "batch_size": 4, "path": tmp_path / "scores" / "n2.jsonl"}
    tasks, score, asked = {"facts": 6, "pydoc_gold": 3}, evaluation.score_loaded_model, []
    fresh = evaluation.evaluate_model(model_folder, tasks=tasks, **settings | {"path": None})

    def recorded(*loaded, tasks, **others):
        for task, limit in tasks.items():
            asked.append((task, limit))
            yield from score(*loaded, tasks={task: limit}, **others)
            if len(asked) == 1:
                raise RuntimeError("killed")

    monkeypatch.setattr(evaluation, "score_loaded_model", recorded)
    with pytest.raises(RuntimeError, match="killed"):
        evaluation.evaluate_model(model_folder, tasks=tasks, **settings)
    assert json.dumps(evaluation.evaluate_model(model_folder, tasks=tasks, **settings)) == json.dumps(fresh)
    monkeypatch.setattr(store, "load_model", lambda *_, **__: pytest.fail("loaded, though all scores are there"))
    assert json.dumps(evaluation.evaluate_model(model_folder, tasks=tasks, **settings)) == json.dumps(fresh)
    assert asked == [("facts", 6), ("pydoc_gold", 3)]


@pytest.mark.parametrize(
    "change", ["limit", "shots", "chat", "batch_size", "precision", "weights", "tokenizer", "adapter", "code"]
)
def test_a_score_is_found_again_only_where_nothing_changed_that_it_depends_on(
    model_folder, tmp_path, monkeypatch, change
):
    folder, tasks, asked = shutil.copytree(model_folder, tmp_path / "model"), {"facts": 6}, []
    settings = {"shots": {}, "chat_tasks": [], "batch_size": 4, "adapter": None, "path": tmp_path / "scores.jsonl"}
    monkeypatch.setattr(store, "load_model", lambda *_, **__: (None, None))
    monkeypatch.setattr(
        evaluation, "score_loaded_model", lambda *_, tasks, **__: (asked.append(1) or (t, {}) for t in tasks)
    )
    for _ in range(2):
        evaluation.evaluate_model(folder, tasks=tasks, **settings)
    assert len(asked) == 1
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    others = {"shots": {"shots": {"facts": 1}}, "chat": {"chat_tasks": ["facts"]}, "batch_size": {"batch_size": 2}}
    others |= {"adapter": {"adapter": tmp_path / "adapter"}}
    if change == "precision":
        monkeypatch.setenv("SDD_DTYPE", "bfloat16")
    elif change == "code":
        monkeypatch.setattr(evaluation, "code_digest", lambda _: "of other code")
    elif change in ("weights", "tokenizer"):
        file = folder / ("model.safetensors" if change == "weights" else "tokenizer_config.json")
        file.write_bytes(file.read_bytes() + b" ")
    tasks = {"facts": 5} if change == "limit" else tasks
    evaluation.evaluate_model(folder, tasks=tasks, **settings | others.get(change, {}))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("metric", "rises", "accuracy"), [("acc", True, True), ("acc", False, False), ("bleu_max", True, False)]
)
def test_only_scores_of_0_to_1_that_rise_are_accuracies(metric, rises, accuracy):
    samples = {"a": [{"filter": "none", metric: 0.5, "choices": None}]}
    results = {"results": {"a": {f"{metric},none": 0.5}}, "samples": samples, "n-shot": {"a": 0}, "versions": {"a": 1}}
    results |= {"higher_is_better": {"a": {metric: rises}}}
    score = evaluation._task_score(results, task="a", limit=0, chat=False, engine="e")
    assert ("accuracy" in score, "task_metric" in score) == (accuracy, not accuracy)


def test_guessing_has_no_score_where_several_choices_are_right():
    def samples(gold):
        return [{"choices": {"gold": gold, "nats": [0.0] * count, "bytes": [1] * count}} for count in (4, 2)]

    assert evaluation._chance(samples([0]), "acc") == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert evaluation._chance(samples([]), "acc") == 0  # a rule of the task's own, as of TruthfulQA mc2


class ChoiceTask:
    """As much of lm-eval's task as its choices are read from."""

    OUTPUT_TYPE, multiple_input = "multiple_choice", 0

    def __init__(self, target, *, inputs=None, process=None):
        self.target, self.inputs, self.multiple_input = target, inputs, int(inputs is not None)
        self.config = type("Config", (), {"process_results": process})

    def doc_to_choice(self, _):
        return ["up", "down", "left"]

    def doc_to_target(self, _):
        return self.target

    def doc_to_text(self, _):
        return self.inputs


@pytest.mark.parametrize(
    ("task", "gold"),
    [
        (ChoiceTask(2), [2]),
        (ChoiceTask("down"), [1]),
        (ChoiceTask([0, 2]), [0, 2]),
        (ChoiceTask(" the rest", inputs=1), [1]),  # Winogrande: the choices stand in the context
        (ChoiceTask(0, process=len), []),  # TruthfulQA mc2: its target says nothing
    ],
)
def test_the_right_choices_are_those_that_lm_eval_scores_by(task, gold):
    sample = {"doc": {}, "resps": [[(-1.0, True)], [(-2.0, False)], [(-3.0, False)]], "arguments": [("a", " é")] * 3}
    assert lm_eval_task._choices(task, sample) == {"gold": gold, "nats": [-1.0, -2.0, -3.0], "bytes": [3, 3, 3]}


def test_mutual_information_scores_choices_twice_and_the_first_ones_count():
    sample = {"doc": {}, "resps": [[(-float(i), False)] for i in range(6)], "arguments": [("a", "b")] * 6}
    assert lm_eval_task._choices(ChoiceTask(0), sample)["nats"] == [0.0, -1.0, -2.0]


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"task 'fact' is unknown: use one of facts, gsm8k_gold, gsm_symbolic,"):
        evaluation.check_tasks({"fact": 3})
    evaluation.check_tasks({"facts": 3, "arc_challenge": 5, "mmlu": 2, "gsm8k": 1})


@pytest.mark.parametrize("adds_bos", [False, True])
def test_scored_texts_start_with_one_bos_where_the_tokenizer_adds_one(model, tokenizer, monkeypatch, adds_bos):
    from tokenizers.processors import TemplateProcessing

    own = copy.deepcopy(tokenizer)
    if adds_bos:
        bos = (own.bos_token, own.bos_token_id)
        own.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    seen = []
    plain = lm_eval_model.SharedContextLM._score_choices
    spy = lambda self, contexts, *rest: seen.extend(contexts) or plain(self, contexts, *rest)  # noqa: E731
    monkeypatch.setattr(lm_eval_model.SharedContextLM, "_score_choices", spy)
    settings = {"tasks": {"facts": 4}, "shots": {}, "batch_size": 2}
    dict(evaluation.score_loaded_model(model, own, chat_tasks=["facts"] if adds_bos else [], **settings))
    dict(evaluation.score_loaded_model(model, own, chat_tasks=[], **settings))
    starts = {tuple(token == own.bos_token_id for token in context[:2]) for context in seen}
    assert starts == ({(True, False)} if adds_bos else {(False, False)})


def adding_bos(tokenizer):
    """The same tokenizer, which puts its BOS token before every text."""
    from tokenizers.processors import TemplateProcessing

    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<bos>"})
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", own.bos_token_id)]
    )
    return own


def test_rolling_texts_follow_one_bos_token(tokenizer):
    own = adding_bos(tokenizer)
    model, texts = tiny_llama(own), ["a text to read whole", "and another, é"]
    lm = lm_eval_model.SharedContextLM(pretrained=model, tokenizer=own, batch_size=2, device="cpu")
    asked = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in texts]
    for text, nats in zip(texts, lm.loglikelihood_rolling(asked, disable_tqdm=True), strict=True):
        ids = own(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([[own.bos_token_id, *ids]])).logits[0].log_softmax(-1)
        assert nats == pytest.approx(float(log_probs[range(len(ids)), ids].sum()), rel=1e-4)


def test_a_text_that_is_read_whole_has_bits_per_byte():
    task = ChoiceTask("é")
    task.OUTPUT_TYPE = "loglikelihood_rolling"
    choice = lm_eval_task._choices(task, {"doc": {}, "resps": [[-3.0]], "arguments": [("é",)]})
    assert choices.gold_bits_per_byte(choice) == pytest.approx(3 / np.log(2) / 2)


@pytest.mark.parametrize(("prints", "chat"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("task", ["facts", "gsm_symbolic"])
def test_no_request_has_two_bos_tokens_and_chat_prompts_have_the_templates(tokenizer, monkeypatch, task, prints, chat):
    own = adding_bos(tokenizer)
    own.chat_template = ("\n{{ bos_token }}" if prints else "") + own.chat_template  # not even at the very beginning
    monkeypatch.setattr(probe, "agrees", lambda *_, **__: True)  # whose rows of random tokens are no requests
    seen = []
    plain_scores, plain_decode = lm_eval_model.SharedContextLM._score_choices, decoding.decode
    spy = lambda self, contexts, *rest: seen.extend(contexts) or plain_scores(self, contexts, *rest)  # noqa: E731
    monkeypatch.setattr(lm_eval_model.SharedContextLM, "_score_choices", spy)
    listen = lambda model, prompts, **rest: seen.extend(prompts.values()) or plain_decode(model, prompts, **rest)  # noqa: E731
    monkeypatch.setattr(decoding, "decode", listen)
    settings = {"tasks": {task: 3}, "shots": {}, "chat_tasks": [task] if chat else [], "batch_size": 2}
    dict(evaluation.score_loaded_model(tiny_llama(own), own, **settings))
    assert len(seen) >= 3
    assert {list(ids).count(own.bos_token_id) for ids in seen} == {int(prints or not chat)}


def test_chat_prompts_of_tasks_are_those_of_training(model, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = own.chat_template.replace(
        "assistant\n", "assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    lm = lm_eval_model.SharedContextLM(pretrained=model, tokenizer=own, batch_size=1, device="cpu")
    asked = [{"role": "user", "content": "How many are 3 and 4?"}]
    assert lm.apply_chat_template(asked) == chat_format.render(own, asked)
    assert "<think>" not in lm.apply_chat_template(asked)


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("printed", ["<|im_end|>", "<eot>"])
def test_answers_of_tasks_end_at_every_end_token(tokenizer, monkeypatch, continuous, printed):
    """At one that only the chat template names, too, special or not: it and the text after it are not in the answer."""
    own = copy.deepcopy(tokenizer)
    own.eos_token = own.pad_token = "<|im_start|>"
    own.add_tokens([AddedToken("<eot>", special=False, normalized=False)])
    own.chat_template = own.chat_template.replace("<|im_end|>", printed)
    model = tiny_llama(own)
    monkeypatch.setattr(probe, "agrees", lambda *_, **__: True)  # its passes would be counted
    monkeypatch.setattr(model.generation_config, "eos_token_id", own.eos_token_id)
    end = own.convert_tokens_to_ids(printed)
    made = own("ab", add_special_tokens=False)["input_ids"] + [end] + own("cd", add_special_tokens=False)["input_ids"]
    plain = model.forward

    def scripted(*arguments, **settings):
        """The model's outputs, with the likeliest next token as in `made`, by the number of calls."""
        output = plain(*arguments, **settings)
        output.logits[..., :] = 0
        output.logits[..., made[min(scripted.calls, 4)]] = 9
        scripted.calls += 1
        return output

    scripted.calls = 0
    monkeypatch.setattr(model, "forward", scripted)
    if not continuous:
        monkeypatch.setattr(decoding, "supports", lambda _: False)
    lm = lm_eval_model.SharedContextLM(pretrained=model, tokenizer=own, batch_size=1, device="cpu")
    request = Instance(
        request_type="generate_until", doc={}, arguments=("x", {"until": ["zz"], "max_gen_toks": 5}), idx=0
    )
    assert lm.generate_until([request], disable_tqdm=True) == ["ab"]
