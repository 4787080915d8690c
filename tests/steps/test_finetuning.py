"""Labels mask the prompt and nothing else; both arms get the same budget; a finished adapter is not trained twice."""

import copy
import json

import pytest
import tiny_models
import torch

from sdd_utils.base.files import read_json_lines
from sdd_utils.base.import_graph import files_behind
from sdd_utils.data.arms import ARMS, FORWARD_KL, REVERSE_KL, files_of, loss_of, scored_arms
from sdd_utils.data.rows import fingerprint, load_rows, text_of
from sdd_utils.models import architecture, store
from sdd_utils.models.chat_format import render
from sdd_utils.steps import finetuning, lora_training, teacher, training_rows
from sdd_utils.study.paths import Run

ROWS = [
    {"id": str(i), "instruction": f"Say {i}.", "context": "", "response": "abc" * (1 + i % 2), "answer": ""}
    for i in range(6)
]
DISTILLED = {row["id"]: {"id": row["id"], "response": "hello " * (1 + int(row["id"]) % 3)} for row in ROWS}
DISTILLED = {id_: row | {"source": "distilled", "attempt": 1 + int(id_) % 2} for id_, row in DISTILLED.items()}
OWN = {id_: row | {"response": f"I say {id_}"} for id_, row in DISTILLED.items()}
TEXT = {row["id"]: {"id": row["id"], "input_ids": [9, *range(30, 31 + len(row["response"]))]} for row in ROWS}
SETS = {"distilled": DISTILLED, "self_generated": OWN, "text": TEXT}
TWO = ["sft", "self_data_ft"]
SETTINGS = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_targets": "all-linear", "learning_rate": 1e-2}
SETTINGS |= {"epochs": 1, "batch_size": 2, "seed": 3, "trained_tokens": 0}


def test_mask_covers_exactly_the_prompt_and_the_end_token_is_trained(tokenizer):
    row = ROWS[0]
    encoded = training_rows.encode(tokenizer, row, "an answer")
    ids, mask = encoded["input_ids"], encoded["completion_mask"]
    prompt = render(tokenizer, [{"role": "user", "content": row["instruction"]}])
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if not m]) == prompt
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "an answer<|im_end|>"
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert mask[-1] == 1


def test_a_response_ends_as_the_chat_template_ends_a_turn(tokenizer):
    """Not with the tokenizer's end token, where that is the end of a document (Gemma, Phi-3, base models)."""
    own = copy.deepcopy(tokenizer)
    own.eos_token = "<|im_start|>"
    ids = training_rows.encode(own, ROWS[0], "an answer")["input_ids"]
    turns = [{"role": "user", "content": ROWS[0]["instruction"]}, {"role": "assistant", "content": "an answer"}]
    assert own.apply_chat_template(turns, tokenize=False) == own.decode(ids) + "\n"


def test_the_trainer_sees_those_labels(model_folder, tokenizer, tmp_path, monkeypatch):
    seen = []
    plain = lora_training.Trainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.append({name: tensor.clone() for name, tensor in inputs.items() if torch.is_tensor(tensor)})
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(lora_training.Trainer, "compute_loss", spy)
    sets = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=TWO, max_length=500)
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


def trained_texts(tokenizer, rows):
    own = [[i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m] for row in rows]
    return [tokenizer.decode(ids).removesuffix("<|im_end|>") for ids in own]


def test_all_arms_hold_the_same_rows_and_a_long_one_leaves_all(tokenizer):
    long = SETS | {"self_generated": OWN | {"0": {"id": "0", "response": "x" * 400}}}
    sets = finetuning.paired_sets(tokenizer, ROWS, long, arms=list(ARMS), max_length=300)
    assert {arm: len(own) for arm, own in sets.items()} == dict.fromkeys(ARMS, 5)
    with_prompts = [own for arm, own in sets.items() if arm != "text_kd"]
    for rows in zip(*with_prompts, strict=True):
        prompts = [[i for i, m in zip(r["input_ids"], r["completion_mask"], strict=True) if not m] for r in rows]
        assert all(prompt == prompts[0] for prompt in prompts)
    assert len(finetuning.paired_sets(tokenizer, ROWS, long, arms=TWO, max_length=300)["sft"]) == 6
    with pytest.raises(ValueError, match="no training row fits into max_length = 3 tokens"):
        finetuning.paired_sets(tokenizer, ROWS, SETS, arms=TWO, max_length=3)


def test_each_arm_learns_its_own_responses_and_the_mix_half_of_each(tokenizer):
    sets = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=list(ARMS), max_length=500)
    texts = {arm: trained_texts(tokenizer, own) for arm, own in sets.items()}
    assert texts["sft"] == [row["response"] for row in ROWS]
    assert texts["self_data_ft"] == [DISTILLED[row["id"]]["response"] for row in ROWS]
    assert texts["self_generated_ft"] == [OWN[row["id"]]["response"] for row in ROWS]
    assert texts["logit_kd"] == texts["on_policy"] == texts["sft"]
    assert texts["self_data_kd"] == texts["self_data_ft"]
    assert sets["text_kd"]["input_ids"] == [TEXT[row["id"]]["input_ids"] for row in ROWS]
    from_original = [mix == own for mix, own in zip(texts["mixed_ft"], texts["sft"], strict=True)]
    from_distilled = [mix == own for mix, own in zip(texts["mixed_ft"], texts["self_data_ft"], strict=True)]
    assert sum(from_original) == sum(from_distilled) == 3
    assert all(a != b for a, b in zip(from_original, from_distilled, strict=True))


def test_arms_of_the_acceptance_learn_the_kept_rows_alone_or_those_of_the_first_attempt(tokenizer):
    rejected = {"response": ROWS[4]["response"], "source": "original", "attempt": 3}
    sets = SETS | {"distilled": DISTILLED | {"4": DISTILLED["4"] | rejected}}
    arms = [*TWO, "first_attempt_ft", "kept_rows_ft"]
    trained = finetuning.paired_sets(tokenizer, ROWS, sets, arms=arms, max_length=500)
    own, written = ([row["response"] for row in rows] for rows in (ROWS, sets["distilled"].values()))
    assert trained_texts(tokenizer, trained["self_data_ft"]) == written
    assert trained_texts(tokenizer, trained["kept_rows_ft"]) == written[:4] + written[5:]
    expected = [written[i] if i in (0, 2) else own[i] for i in range(6)]  # 1, 3, 5: second attempt; 4: rejected
    assert trained_texts(tokenizer, trained["first_attempt_ft"]) == expected


def test_an_arm_without_a_kept_row_is_refused(tokenizer):
    none = {id_: row | {"source": "original"} for id_, row in DISTILLED.items()}
    with pytest.raises(ValueError, match="arm kept_rows_ft has no row to learn, as no rewrite of these 6 was kept"):
        finetuning.paired_sets(tokenizer, ROWS, {"distilled": none}, arms=["sft", "kept_rows_ft"], max_length=500)


def test_the_mix_is_half_and_half_of_the_rows_that_are_trained_and_goes_by_row(tokenizer):
    rows = [{"id": f"r{i}", "response": "original"} for i in range(400)]
    sets = {"distilled": {row["id"]: {"response": "distilled"} for row in rows}}
    mixed = ARMS["mixed_ft"](rows, sets)
    assert mixed.count("original") == 200
    turned = ARMS["mixed_ft"](rows[::-1], sets)
    assert turned[::-1] == mixed  # the coin is the row's, whatever its place
    runs = sum(a != b for a, b in zip(mixed, mixed[1:], strict=False))
    assert 150 < runs < 250  # neither alternating nor in blocks
    assert ARMS["mixed_ft"](rows[:101], sets).count("original") == 50


def test_generated_sets_are_read_where_an_arm_needs_them(tmp_path):
    for name in ("d.jsonl", "d-self_generated.jsonl", "d-text.jsonl"):
        (tmp_path / name).write_text(json.dumps({"id": "0", "response": name}) + "\n")
    assert files_of(TWO) == ("distilled",)
    paths = {which: tmp_path / Run(tmp_path).training_set("d", which).name for which in files_of(ARMS)}
    made = {which: fingerprint(read_json_lines(path)) for which, path in paths.items()}
    sets = finetuning.read_sets(paths, fingerprints=made)
    assert {which: rows["0"]["response"] for which, rows in sets.items()} == {
        "distilled": "d.jsonl", "self_generated": "d-self_generated.jsonl", "text": "d-text.jsonl"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"d.jsonl is not the distilled set that the record of 03 names"):
        finetuning.read_sets(paths, fingerprints={"distilled": "another model's"})


def test_equal_budgets_and_a_finished_adapter_is_found_again(model_folder, tokenizer, tmp_path, monkeypatch):
    sets = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=TWO, max_length=500)
    reports = {arm: finetuning.finetune(model_folder, sets[arm], adapter=tmp_path / arm, **SETTINGS) for arm in sets}
    assert reports["sft"]["rows"] == reports["self_data_ft"]["rows"] == 6
    assert reports["sft"]["steps"] == reports["self_data_ft"]["steps"] == 3
    assert reports["sft"]["trained_tokens"] == sum(map(sum, sets["sft"]["completion_mask"]))
    monkeypatch.setattr(lora_training.Trainer, "train", lambda self, **_: pytest.fail("trained again"))
    again = finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "sft", **SETTINGS)
    assert again == reports["sft"]
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "sft", **SETTINGS | {"learning_rate": 1e-3})


def test_equal_tokens_stop_the_longer_arm_where_the_shorter_one_ends(model_folder, tokenizer, tmp_path):
    sets = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=TWO, max_length=500)
    settings = SETTINGS | {"trained_tokens": finetuning.token_budget(sets, epochs=2), "epochs": 2}
    short, long = (finetuning.finetune(model_folder, sets[arm], adapter=tmp_path / arm, **settings) for arm in TWO)
    assert short["trained_tokens"] == settings["trained_tokens"] == 2 * sum(map(sum, sets["sft"]["completion_mask"]))
    longest = max(map(sum, sets["self_data_ft"]["completion_mask"]))
    assert settings["trained_tokens"] - longest < long["trained_tokens"] <= settings["trained_tokens"]
    assert (short["steps"], long["steps"]) == (6, len(long["loss"]))
    assert long["steps"] < 6
    assert long["seen_tokens"] < 2 * sum(map(len, sets["self_data_ft"]["input_ids"]))


def test_a_merged_model_is_the_one_that_its_saved_weights_give(model_folder, tokenizer, tmp_path):
    """In bfloat16: rotary frequencies stay in float32, and weights are not frozen, as after any other load."""

    sets = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=TWO, max_length=500)
    finetuning.finetune(model_folder, sets["sft"], adapter=tmp_path / "a", **SETTINGS)
    merged, _, _ = store.load_merged(model_folder, adapter=tmp_path / "a", dtype=torch.bfloat16)
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    plain, _ = store.load_model(tmp_path / "merged", dtype=torch.bfloat16)
    assert [(n, b.dtype) for n, b in merged.named_buffers()] == [(n, b.dtype) for n, b in plain.named_buffers()]
    assert {(p.dtype, p.requires_grad) for p in merged.parameters()} == {(torch.bfloat16, True)}
    ids = torch.randint(256, (2, 200))
    with torch.no_grad():
        assert torch.equal(merged(ids).logits, plain(ids).logits)


def test_an_adapter_depends_on_the_code_that_trains_it_and_on_the_precision(model_folder, tokenizer, monkeypatch):
    code = {path.stem for path in files_behind([lora_training.__name__], rooms=("steps", "engine"))}
    assert code > {"lora_training", "trainers", "distillation_loss", "on_policy", "teacher", "attention", "lora_linear"}
    assert code.isdisjoint({"distillation", "evaluation", "generation", "finetuning"})
    sets, keys = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=TWO, max_length=500), []
    for dtype, digest in (("float32", "a"), ("bfloat16", "a"), ("float32", "b")):
        monkeypatch.setenv("SDD_DTYPE", dtype)
        monkeypatch.setattr(finetuning, "code_digest", lambda *_, digest=digest, **__: digest)
        keys.append(finetuning._key(model_folder, sets["sft"], SETTINGS, {}))
    for loss in (FORWARD_KL, REVERSE_KL):
        keys.append(finetuning._key(model_folder, sets["sft"], SETTINGS, {"loss": loss, "original": model_folder}))
    assert len(set(keys)) == 5


def test_more_rows_than_were_distilled_are_one_sentence(tokenizer):
    more = [*ROWS, ROWS[0] | {"id": "new"}]
    with pytest.raises(
        ValueError, match="the distilled set lacks 1 of 7 rows, the first is 'new': run notebooks/03_self"
    ):
        finetuning.paired_sets(tokenizer, more, {"distilled": SETS["distilled"]}, arms=TWO, max_length=500)


def test_plain_text_has_as_many_trained_tokens_as_each_original_response_and_no_chat_format(tokenizer):
    text = training_rows.plain_text(tokenizer, ROWS, names=["pydoc", "gsm_symbolic"])
    assert [row["id"] for row in text] == [row["id"] for row in ROWS]
    of_text, of_rows = (
        [sum(row["completion_mask"]) for row in training_rows.encoded(tokenizer, ROWS, {"text": own}, [arm])[arm]]
        for arm, own in (("text_kd", {row["id"]: row for row in text}), ("sft", {}))
    )
    assert of_text == of_rows
    pydoc, maths = (load_rows(name, split="train", rows=0)[::-1] for name in ("pydoc", "gsm_symbolic"))
    running = training_rows.BETWEEN.join(
        text_of(row) for pair in zip(pydoc[:9], maths[:9], strict=True) for row in pair
    )
    together = tokenizer.decode([id_ for row in text for id_ in row["input_ids"]])
    assert len(together) > 30
    assert running.startswith(together)
    assert training_rows.plain_text(tokenizer, ROWS[:3], names=["pydoc", "gsm_symbolic"]) == text[:3]


def test_a_token_that_begins_texts_begins_every_piece_of_plain_text():
    tokenizer = tiny_models.llama_tokenizer()
    for row in training_rows.plain_text(tokenizer, ROWS, names=["pydoc"]):
        assert row["input_ids"][0] == tokenizer.bos_token_id
        trained = sum(training_rows.encode_text(row["input_ids"])["completion_mask"])
        assert trained == len(tokenizer(ROWS[int(row["id"])]["response"], add_special_tokens=False)["input_ids"]) + 1


def test_every_arm_takes_the_same_steps_and_says_what_it_took(model_folder, tokenizer, tmp_path):
    sets = finetuning.paired_sets(tokenizer, ROWS, SETS, arms=list(ARMS), max_length=500)
    scored = scored_arms(list(ARMS))
    assert scored == ["logit_kd", "self_data_kd", "text_kd"]
    teacher.write(model_folder, {arm: list(sets[arm]) for arm in scored}, folder=tmp_path / "teacher")
    settings = SETTINGS | {"original": model_folder, "distributions": tmp_path / "teacher"}
    reports = {
        arm: finetuning.finetune(model_folder, data, adapter=tmp_path / arm, loss=loss_of(arm), **settings)
        for arm, data in sets.items()
    }
    assert {(report["rows"], report["steps"]) for report in reports.values()} == {(6, 3)}
    trained = {arm: report["trained_tokens"] for arm, report in reports.items()}
    assert trained["sft"] == trained["logit_kd"] == trained["text_kd"] >= trained["on_policy"] > 0
    assert trained["self_data_ft"] == trained["self_data_kd"]
    places = {"folder": model_folder, "original": model_folder}
    budgets = {arm: finetuning.budget(reports[arm], sets[arm], loss=loss_of(arm), **places) for arm in sets}
    per_token = 2 * architecture.account(store.load_config(model_folder)).matmul
    seen = {arm: report["seen_tokens"] for arm, report in reports.items()}
    assert budgets["sft"] == {"teacher_tokens": 0, "generated_tokens": 0, "flops": 2 * per_token * seen["sft"]}
    assert budgets["logit_kd"]["teacher_tokens"] == trained["logit_kd"]
    assert budgets["logit_kd"]["flops"] == 3 * per_token * seen["logit_kd"]  # and the original reads it once
    assert budgets["on_policy"]["teacher_tokens"] == budgets["on_policy"]["generated_tokens"] == trained["on_policy"]
    assert budgets["on_policy"]["flops"] == 4 * per_token * seen["on_policy"]
    assert all(len(finetuning.seconds_of(tmp_path / arm)) == 3 for arm in sets)
    again = finetuning.finetune(
        model_folder, sets["logit_kd"], adapter=tmp_path / "logit_kd", loss=loss_of("logit_kd"), **settings
    )
    assert again == reports["logit_kd"]
