"""Every architecture gets the numbers of plain passes over single rows, by whichever way was found exact for it."""

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from unlike_llama import CONFIGS, END, VOCABULARY, build, plain_continuation, plain_log_probs

from sdd_utils.engine import attention, decoding, lm_eval_model, probe

JOINT = {"learned positions", "masks of its own", "experts"}
ONE_BY_ONE = {"recurrent layers"}


def rows(lengths) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, END, size=length).tolist() for length in lengths]


@pytest.mark.parametrize("kind", CONFIGS)
def test_texts_are_those_of_plain_passes(kind):
    model = build(kind)
    engine, batch_size = decoding.engine_for(model, batch_size=3)
    assert engine is (decoding.decode if kind in JOINT else decoding.generate_batches)
    assert batch_size == (1 if kind in ONE_BY_ONE else 3)
    asked = {str(i): row for i, row in enumerate(rows([3, 90, 9, 20]))}
    found = dict(engine(model, asked, batch_size=batch_size, max_new_tokens=6, ends=[END], draw=decoding.GREEDY))
    assert found == {id_: plain_continuation(model, row, tokens=6) for id_, row in asked.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_likelihoods_are_those_of_plain_passes(kind, tokenizer):
    model = build(kind)
    scorer = lm_eval_model.SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    asked = [(("", ""), context, choice) for context in rows([3, 90, 9]) for choice in rows([1, 4])]
    for (_, context, choice), (found, _) in zip(asked, scorer._loglikelihood_tokens(asked, True), strict=True):
        log_probs = plain_log_probs(model, context + choice[:-1])[len(context) - 1 :]
        assert found == pytest.approx(float(log_probs.gather(1, torch.tensor(choice)[:, None]).sum()), abs=1e-3)


@pytest.mark.parametrize("kind", ["recurrent layers", "attention of its own", "learned positions"])
def test_generated_answers_are_those_of_plain_passes(kind, tokenizer):
    model = build(kind)
    scorer = lm_eval_model.SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    contexts, settings = ["a", "a much longer text"], {"until": ["\n\n\n"], "max_gen_toks": 6}
    asked = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(contexts)]
    expected = [plain_continuation(model, tokenizer(text)["input_ids"], tokens=6) for text in contexts]
    found = scorer.generate_until(asked, disable_tqdm=True)
    assert found == [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]
    assert scorer.batch_size == 2


def test_a_window_longer_than_the_probes_rows_is_read_from_the_configuration():
    model = build("local layers of long windows")
    assert not attention.attends_to_all(model)
    assert attention.attends_to_all(build("learned positions"))


def test_a_model_is_tried_once_and_one_line_says_what_serves_instead(capsys):
    model, tries = build("attention of its own"), []
    model.register_forward_pre_hook(lambda *_: tries.append(1))
    assert not decoding.supports(model)
    assert tries
    said, before = capsys.readouterr().err, len(tries)
    assert said.startswith("StableLmForCausalLM: joint decoding fails (")
    assert said.endswith("so transformers generates\n")
    assert said.count("\n") == 1
    assert not decoding.supports(model)
    assert (len(tries), capsys.readouterr().err) == (before, "")


def test_rows_that_see_each_other_are_found_out_in_every_precision(capsys):
    for dtype in (torch.float32, torch.bfloat16):
        for kind, exact in {"recurrent layers": False, "learned positions": True, "experts": True}.items():
            model = build(kind).to(dtype)
            assert probe.reads_padding(model) == exact
            assert ("reading padded rows gives other logits" in capsys.readouterr().err) != exact


@torch.no_grad()
def test_what_two_kernels_of_attention_round_apart_is_allowed_and_the_models_own_kernel_comes_back(monkeypatch):
    model = build("learned positions").bfloat16()
    plain = probe.plain_logits(model, probe.random_rows(model, (12,))[0])
    model.set_attn_implementation("eager")
    other = probe.plain_logits(model, probe.random_rows(model, (12,))[0])
    assert attention.set_by_rows(model) is False  # it attends by "eager"
    model.set_attn_implementation("sdpa")
    assert probe._between_kernels(model) == pytest.approx(probe.difference(other, plain))
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(probe, "_rounding", lambda model: 0.0)
    monkeypatch.setattr(probe, "_between_kernels", lambda model: 0.13)
    assert probe._allowed(model, 0.12)
    assert not probe._allowed(model, 0.14)
    assert not probe._allowed(model.float(), 0.12)


def test_a_model_in_training_mode_is_probed_without_dropout_and_stays_in_it():
    model = build("learned positions").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert probe.reads_padding(model)
    assert model.training


def test_differences_that_change_no_probability_do_not_count():
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    assert probe.difference(logits + 3, logits) < 1e-6
    assert probe.difference(logits.flip(-1), logits) > 1
    assert probe.difference(logits * torch.nan, logits) == torch.inf
    assert probe.difference(logits[:3], logits) == torch.inf
