"""Chosen layers against brute force, and against a model from which the layers were really cut."""

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from sdd_utils.base.strategies import DRAWS, STRATEGIES
from sdd_utils.models.layer_hooks import passed_over
from sdd_utils.steps import layer_selection, pruning, similarity

TEXTS = ["a", "the cat sat on the mat", "two words", "once upon a time in a small town", "x = 1"]
OTHERS = ["another text", "of other rows", "y = 2 and z = 3"]
STRENGTHS = (0.5, 1.2, 0.4, 2.0, 0.8, 2.2, 1.1)
SETTINGS = {"batch_size": 2, "max_length": 64}


@pytest.fixture(scope="module")
def deep(tokenizer):
    """Seven layers of several strengths, so that the least are not the last, and change when others are cut."""
    model = tiny_llama(tokenizer, layers=7)
    for layer, strength in zip(model.model.layers, STRENGTHS, strict=True):
        layer.self_attn.o_proj.weight.data *= strength
        layer.mlp.down_proj.weight.data *= strength
    return model


@pytest.fixture(scope="module")
def measured(deep, tokenizer):
    return similarity.measure_similarity(deep, tokenizer, TEXTS, **SETTINGS)


def influence_by_hand(model, tokenizer):
    """Block Influence of each layer of a model as it is, from plain passes over single texts."""
    inputs, outputs = [], []

    def see(_, args, named, output):
        inputs.append(args[0] if args else named["hidden_states"])
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(see, with_kwargs=True) for layer in model.model.layers]
    for text in TEXTS:
        with torch.no_grad():
            model(**tokenizer(text, return_tensors="pt"), use_cache=False)
    for handle in handles:
        handle.remove()
    depth = len(model.model.layers)
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=-1)[0] for a, b in zip(inputs, outputs, strict=True)]
    return np.array([1 - float(torch.cat(cosines[layer::depth]).mean()) for layer in range(depth)])


def test_iterative_is_the_brute_force_of_cutting_and_measuring_again(deep, tokenizer, measured):
    wanted, left, model = [], list(range(7)), copy.deepcopy(deep)
    for _ in range(5):
        least = int(influence_by_hand(model, tokenizer).argmin())
        wanted.append(left.pop(least))
        pruning.remove_block(model, start=least, block_size=1)
    assert wanted != np.argsort(measured.block_influence)[:5].tolist()  # else measuring again would show nothing
    before = deep.state_dict()
    chosen = layer_selection.choose_layers(
        deep, tokenizer, measured, TEXTS, strategies=["iterative"], block_sizes=[1, 3, 5], **SETTINGS
    )
    assert [choice["removed"] for choice in chosen] == [sorted(wanted[:n]) for n in (1, 3, 5)]
    assert len(deep.model.layers) == 7
    assert all(torch.equal(before[name], tensor) for name, tensor in deep.state_dict().items())


def test_a_layer_that_is_passed_over_does_nothing_until_it_is_not(deep, tokenizer):
    batch = tokenizer("some text", return_tensors="pt")
    with torch.no_grad():
        whole = deep(**batch).logits
        with passed_over([deep.model.layers[2]]):
            without = deep(**batch).logits
        cut = pruning.remove_layers(copy.deepcopy(deep), [2])(**batch).logits
        assert torch.equal(deep(**batch).logits, whole)
    torch.testing.assert_close(without, cut)
    assert not torch.allclose(without, whole)


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_least_influence_is_the_set_of_the_smallest_sum(depth, seed):
    influence = np.random.default_rng(seed).random(depth)
    for n in range(1, depth):
        brute = min(combinations(range(depth), n), key=lambda layers: influence[[*layers]].sum())
        assert layer_selection.least_influence(influence, n) == [*brute]


def test_of_layers_that_tie_the_first_go():
    assert layer_selection.least_influence(np.array([0.5, 0.2, 0.2, 0.1, 0.2]), 3) == [1, 2, 3]


@pytest.mark.parametrize(("n", "block"), [(1, [5]), (3, [3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_the_deepest_block_ends_before_the_last_layer(n, block):
    assert layer_selection.deepest_but_last(7, n) == block


def test_random_layers_are_the_same_for_a_draw_and_others_for_another():
    draws = [layer_selection.random_layers(30, 6, draw=draw) for draw in range(DRAWS)]
    assert draws == [layer_selection.random_layers(30, 6, draw=draw) for draw in range(DRAWS)]
    assert len({*map(tuple, draws)}) == DRAWS
    assert all(layers == sorted({*layers}) and len(layers) == 6 for layers in draws)
    assert set(layer_selection.random_layers(30, 4, draw=0)) - set(draws[0])  # not the first of the same order


def test_every_layer_is_drawn_as_often_as_any_other():
    drawn = np.concatenate([layer_selection.random_layers(5, 2, draw=draw) for draw in range(1000)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 1000, 0.4, atol=0.06)  # four standard errors


@pytest.mark.parametrize("n", [0, 7])
def test_an_impossible_number_of_layers_is_named(n):
    said = f"block size {n} is impossible: a model of 7 layers allows 1..6"
    for choose in (
        lambda: layer_selection.least_influence(np.arange(7.0), n),
        lambda: layer_selection.deepest_but_last(7, n),
        lambda: layer_selection.random_layers(7, n, draw=0),
    ):
        with pytest.raises(ValueError, match=said):
            choose()


def test_every_strategy_chooses_for_every_block_size(deep, tokenizer, measured):
    sizes = [2, 4]
    chosen = layer_selection.choose_layers(
        deep, tokenizer, measured, TEXTS, strategies=[*STRATEGIES], block_sizes=sizes, **SETTINGS
    )
    assert len(chosen) == len(sizes) * (len(STRATEGIES) - 1 + DRAWS)
    by_key = {(choice["strategy"], choice["draw"], choice["block_size"]): choice["removed"] for choice in chosen}
    assert len(by_key) == len(chosen)
    assert all(len({*removed}) == n for (_, _, n), removed in by_key.items())
    for block in similarity.choose_blocks(measured, sizes):
        n, start = block["block_size"], block["start"]
        assert by_key["angular", 0, n] == [*range(start, start + n)]
        assert by_key["block_influence", 0, n] == sorted(np.argsort(measured.block_influence)[:n].tolist())


def test_agreement_is_the_share_that_a_second_set_chooses_as_well():
    def choices(*removed):
        names = ("angular", "iterative", "random")
        return [
            {"strategy": name, "draw": 0, "block_size": 4, "removed": layers}
            for name, layers in zip(names, removed, strict=True)
        ]

    first = choices([3, 4, 5, 6], [1, 4, 8, 9], [0, 1, 2, 3])
    second = choices([4, 5, 6, 7], [1, 4, 8, 9], [0, 1, 2, 3])
    assert [choice["agreement"] for choice in layer_selection.with_agreement(first, second)] == [0.75, 1.0, None]
