"""Continuous decoding: greedy texts are `generate`'s, and a row's draws are its own, whatever is decoded beside it."""

import numpy as np
import pytest
import torch
import unlike_llama
from conftest import tiny_llama
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sdd_utils.engine import decoding, generation, kv_slots, prompt_lookup

ENDS = list(range(0, 256, 16))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 258, "initializer_range": 0.15}


def prompts(n: int = 9, *, shared: int = 6) -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    opening = rng.integers(0, 256, size=shared).tolist()
    return {f"r{i}": opening + rng.integers(0, 256, size=1 + 4 * (i % 5)).tolist() for i in range(n)}


def models(tokenizer):
    torch.manual_seed(0)
    yield tiny_llama(tokenizer)
    yield Qwen3ForCausalLM(Qwen3Config(**SIZES)).eval()
    yield tiny_llama(tokenizer, attn_implementation="eager")


def alone(model, prompt: list[int], *, max_new_tokens: int) -> list[int]:
    """Plain greedy `generate` of one row."""
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0, "max_new_tokens": max_new_tokens}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()


def decode(model, asked, *, engine=decoding.decode, batch_size=4, max_new_tokens=24, **sampling) -> dict:
    sampling = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0} | sampling
    draw = decoding.sampler(max_new_tokens=max_new_tokens, **sampling)
    rows = engine(model, asked, batch_size=batch_size, max_new_tokens=max_new_tokens, ends=ENDS, draw=draw)
    return dict(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("shared", [0, 6])
def test_greedy_texts_are_those_of_generate_row_by_row(tokenizer, batch_size, shared):
    finishes, asked = set(), prompts(shared=shared)
    for model in models(tokenizer):
        found = decode(model, asked, batch_size=batch_size)
        assert found == {id_: alone(model, prompt, max_new_tokens=24) for id_, prompt in asked.items()}
        finishes |= {tokens[-1] in ENDS for tokens in found.values()}
    assert finishes == {True, False}, "the comparison needs rows that stop and rows that do not"


def test_attention_by_blocks_of_slots_gives_the_same_texts(model, monkeypatch):
    monkeypatch.setattr(kv_slots, "BLOCK", 2)
    asked = prompts()
    found = decode(model, asked, batch_size=5)
    assert found == {id_: alone(model, prompt, max_new_tokens=24) for id_, prompt in asked.items()}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.3, "top_p": 0.8, "top_k": 2, "seed": 3}])
def test_drafts_are_taken_and_refused_and_change_no_text(model, monkeypatch, sampling):
    kept, plain = [], prompt_lookup.confirmed

    def confirmed(draft, chosen):
        kept.append((len(draft), plain(draft, chosen)))
        return kept[-1][1]

    def texts(draft: int) -> dict:
        monkeypatch.setattr(decoding, "DRAFT", draft)
        draw = decoding.sampler(max_new_tokens=150, **{"top_p": 1.0, "top_k": 0, "seed": 0} | sampling)
        return dict(decoding.decode(model, prompts(), batch_size=4, max_new_tokens=150, ends=[], draw=draw))

    monkeypatch.setattr(decoding, "confirmed", confirmed)
    assert texts(3) == texts(0)
    taken = {(drafted, len(tokens) - 1) for drafted, tokens in kept}
    assert {(0, 0), (3, 0), (3, 3)} <= taken, "there must be rows without a draft, wrong drafts and right ones"


def test_a_draft_is_what_followed_the_last_time():
    row = prompt_lookup.Row("row", 7, [1, 2, 3, 1, 2, 4, 1])
    assert row.draft(2) == []
    row.append(2)
    assert (row.draft(2), row.draft(1), row.draft(0), row.new_tokens, row.n_new) == ([4, 1], [4], [], [2], 1)
    assert prompt_lookup.Row("row", 1, [5]).draft(2) == []


def test_tokens_hold_up_to_the_first_that_was_not_drafted():
    chosen = iter([1, 2, 3, 1, 9, 3, 7])
    found = [prompt_lookup.confirmed(draft, chosen) for draft in ([1, 2], [1, 2], [])]
    assert found == [[1, 2, 3], [1, 9], [7]]


def test_long_prompts_get_fewer_slots_and_the_same_texts(model, monkeypatch):
    asked, shapes = prompts(), []
    expected = decode(model, asked)
    monkeypatch.setattr(decoding, "MOST_TOKENS", 100)
    made = kv_slots.SlotCache
    monkeypatch.setattr(decoding, "SlotCache", lambda *a, **k: shapes.append(k) or made(*a, **k))
    assert decode(model, asked) == expected
    assert shapes[0]["slots"] == 100 // shapes[0]["capacity"] > 1


def test_a_prompt_read_in_pieces_gets_the_same_text(model, monkeypatch):
    asked, widths = prompts(), []
    expected = decode(model, asked)
    monkeypatch.setattr(decoding, "MOST_SCORES", 100)
    model.model.register_forward_pre_hook(lambda *args: widths.append(args[-1]["input_ids"].shape[1]), with_kwargs=True)
    assert decode(model, asked) == expected
    assert max(widths) < max(map(len, asked.values())) - 1


def test_a_sliding_window_goes_through_generate(tokenizer):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(sliding_window=8, **SIZES)).eval()
    assert not decoding.supports(model)
    assert decoding.supports(MistralForCausalLM(MistralConfig(sliding_window=None, **SIZES)))
    asked = prompts()
    found = decode(model, asked, engine=decoding.generate_batches)
    assert found == {id_: alone(model, prompt, max_new_tokens=24) for id_, prompt in asked.items()}
    texts = {id_: tokenizer.decode(prompt) for id_, prompt in asked.items()}
    assert len(list(generation.generate_texts(model, tokenizer, texts, max_new_tokens=3, batch_size=4))) == len(texts)


@pytest.mark.parametrize("build", [tiny_llama, lambda tokenizer, **_: unlike_llama.build("sinks")])
def test_a_prompt_longer_than_the_context_is_told_and_the_others_go_on(tokenizer, capsys, build):
    model = build(tokenizer)
    model.config.max_position_embeddings = 40
    asked, settings = {"short": "a", "long": "b" * 37, "fits": "c" * 36}, {"batch_size": 2}
    found = {row["id"]: row for row in generation.generate_texts(model, tokenizer, asked, max_new_tokens=4, **settings)}
    unwritten = {"text": "", "finish": "too long", "n_tokens": 0, "end_token": None}
    assert found["long"] == {"id": "long", "seed": 0} | unwritten
    assert [found[id_]["n_tokens"] for id_ in ("short", "fits")] == [4, 4]
    assert "1 of 3 prompts are longer than 36 tokens, the model's context less max_new_" in capsys.readouterr().err
    with pytest.raises(ValueError, match="max_new_tokens = 40 leaves no room for a prompt in the model's context of"):
        list(generation.generate_texts(model, tokenizer, asked, max_new_tokens=40, **settings))


def test_a_model_that_names_no_context_takes_any_prompt(tokenizer):
    model = unlike_llama.build("slopes for positions")
    rows = generation.generate_texts(model, tokenizer, {"a": "x" * 600}, max_new_tokens=2, batch_size=2)
    assert [row["n_tokens"] for row in rows] == [2]


SAMPLING = {"temperature": 0.9, "top_p": 0.8, "seed": 3}


@pytest.mark.parametrize("top_k", [0, 50])
def test_a_sampled_row_depends_on_nothing_but_its_id_and_the_seed(model, top_k):
    asked, sampling = prompts(), SAMPLING | {"top_k": top_k}
    expected = decode(model, asked, batch_size=1, **sampling)
    for batch_size in (3, 32):
        assert decode(model, asked, batch_size=batch_size, **sampling) == expected
    assert decode(model, dict(reversed(asked.items())), batch_size=4, **sampling) == expected
    rest = dict(list(asked.items())[4:])
    assert decode(model, rest, batch_size=4, **sampling) == {id_: expected[id_] for id_ in rest}
    assert decode(model, asked, engine=decoding.generate_batches, **sampling) == expected
    assert decode(model, asked, **sampling | {"seed": 4}) != expected


@pytest.mark.parametrize("engine", [decoding.decode, decoding.generate_batches])
def test_greedy_and_sampled_rows_are_decoded_together(model, engine):
    asked, (one, *_, other) = prompts(), prompts()
    together = decode(model, asked, engine=engine, **SAMPLING, top_k=50, greedy=[one, other])
    expected = decode(model, asked, **SAMPLING, top_k=50) | decode(model, {id_: asked[id_] for id_ in (one, other)})
    assert together == expected


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (12, 0.7), (12, 1.0), (0, 1.0)])
def test_draws_have_the_distribution_of_transformers(top_k, top_p):
    torch.manual_seed(0)
    logits, draws = 2 * torch.randn(1, 40), 20000
    warpers = [TemperatureLogitsWarper(0.95)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)]
    expected = LogitsProcessorList(warpers)(None, logits).softmax(dim=-1)[0]
    draw = decoding.sampler(temperature=0.95, top_p=top_p, top_k=top_k, seed=0, max_new_tokens=draws)
    steps = list(range(draws))
    tokens = draw(logits.expand(draws, -1), ["row"] * draws, steps)
    counts = torch.bincount(tokens, minlength=40) / draws
    assert counts[expected == 0].sum() == 0
    assert (counts - expected).abs().max() < 0.015  # four standard errors of a frequency near 1/2


def test_a_row_of_one_token_and_no_rows(model):
    assert decode(model, {"only": [5]}) == {"only": alone(model, [5], max_new_tokens=24)}
    assert decode(model, {}) == {}
