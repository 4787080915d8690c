"""Angular map and block choice against brute force and against transformers' own hidden states."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unlike_llama import CONFIGS, build

from sdd_utils.base.records import read_record, write_record
from sdd_utils.steps import pruning, similarity

TEXTS = ["a", "the cat sat on the mat", "two words", "once upon a time in a small town", "x = 1"]


def reference_distance(a, b) -> float:
    a, b = a.double(), b.double()
    return float(torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1)) / torch.pi)


def states_one_by_one(model, tokenizer, text):
    """States 0..L of one unpadded text at its last token; the last state is taken before the final norm."""
    seen = []
    handle = model.model.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    handle.remove()
    last = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return [h[0, -1] for h in hidden[:-1]] + [last.reshape(-1, last.shape[-1])[-1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_map_is_the_brute_force_map(model, tokenizer, side):
    model.model.norm.weight.data.uniform_(0.1, 3.0)  # an uneven final norm would show if it were applied
    tokenizer.padding_side = side
    measured = similarity.measure_similarity(model, tokenizer, TEXTS, batch_size=2, max_length=64)
    tokenizer.padding_side = "left"
    states = [states_one_by_one(model, tokenizer, text) for text in TEXTS]
    depth = len(model.model.layers)
    for low in range(depth + 1):
        for high in range(low, depth + 1):
            expected = np.mean([reference_distance(s[low], s[high]) for s in states])
            assert measured.map[low, high] == pytest.approx(expected, abs=2e-4)
    for n in range(1, depth):
        brute = min(range(depth - n + 1), key=lambda start: measured.map[start, start + n])
        assert similarity.choose_block(measured.map, n) == brute


def test_batching_does_not_change_the_map(model, tokenizer):
    maps = [
        similarity.measure_similarity(model, tokenizer, TEXTS, batch_size=size, max_length=64).map
        for size in (1, 2, len(TEXTS))
    ]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-5)
    np.testing.assert_allclose(maps[2], maps[0], atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_the_batch_nor_the_side_of_padding_changes_a_distance(kind, side, tokenizer):
    own, model = copy.deepcopy(tokenizer), build(kind)
    own.padding_side = side
    settings = {"texts": ["x", "a short one", "a longer text about nothing, with many words"], "max_length": 64}
    alone, together = (similarity.measure_similarity(model, own, **settings, batch_size=n) for n in (1, 3))
    np.testing.assert_allclose(together.distances, alone.distances, atol=1e-4)
    np.testing.assert_allclose(together.block_influence, alone.block_influence, atol=1e-4)


def test_texts_longer_than_the_context_are_cut_to_it(tokenizer):
    model = build("learned positions")
    long = similarity.measure_similarity(model, tokenizer, ["a b" * 400], batch_size=1, max_length=2048)
    cut = similarity.measure_similarity(model, tokenizer, ["a b" * 400], batch_size=1, max_length=512)
    assert np.array_equal(long.distances, cut.distances)


def test_block_influence_is_the_mean_over_all_real_tokens(model, tokenizer):
    measured = similarity.measure_similarity(model, tokenizer, TEXTS, batch_size=3, max_length=64)
    cosines = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        cosines.append(torch.nn.functional.cosine_similarity(hidden[0][0], hidden[1][0], dim=-1))
    assert measured.block_influence[0] == pytest.approx(1 - float(torch.cat(cosines).mean()), abs=1e-5)


def test_identical_and_opposite_states():
    state = torch.randn(1, 4, 16)
    distances = similarity.angular_distances(torch.cat([state, state, -state]))
    assert not torch.isnan(distances).any()
    assert distances[:, 0, 1].max() < 1e-3
    assert distances[:, 0, 2].min() > 1 - 1e-3


def test_bfloat16_states_are_upcast():
    a = torch.randn(64)
    b = a + 0.09 * torch.randn(64)
    states = torch.stack([a, b]).bfloat16()[:, None]
    expected = reference_distance(states[0, 0], states[1, 0])
    assert similarity.angular_distances(states)[0, 0, 1].item() == pytest.approx(expected, rel=1e-3)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.booleans())
def test_last_positions_for_both_padding_sides(lengths, left):
    width = max(lengths)
    rows = [[0] * (width - n) + [1] * n if left else [1] * n + [0] * (width - n) for n in lengths]
    expected = [width - 1 if left else n - 1 for n in lengths]
    assert similarity.last_positions(torch.tensor(rows)).tolist() == expected


@given(st.integers(3, 9), st.integers(0, 10_000))
def test_choice_against_brute_force_on_random_maps(depth, seed):
    angular_map = np.random.default_rng(seed).random((depth + 1, depth + 1))
    for n in range(1, depth):
        brute = min(range(depth - n + 1), key=lambda start: angular_map[start, start + n])
        assert similarity.choose_block(angular_map, n) == brute


@pytest.mark.parametrize("block_size", [-1, 0, 5, 9])
def test_impossible_block_size_is_named(block_size):
    with pytest.raises(ValueError, match=f"block size {block_size} is impossible.*5 layers allows 1..4"):
        similarity.choose_block(np.zeros((6, 6)), block_size)


def with_distances(rows):
    """A measurement of two samples with these distances d(l, 2) of the blocks of two layers."""
    distances = np.zeros((2, len(rows) + 2, len(rows) + 2))
    for start, (first, second) in enumerate(rows):
        distances[:, start, start + 2] = first, second
    return similarity.Similarity(distances=distances, block_influence=np.zeros(len(rows) + 1))


def test_a_near_tie_removes_the_block_that_the_record_shows(tmp_path):
    """The exact means put block 2 first by a hair; rounded as the record keeps them, blocks 0 and 2 tie."""
    measured = with_distances([(0.2000002, 0.1), (0.4, 0.4), (0.2, 0.1)])
    assert measured.distances.mean(axis=0).diagonal(2).argmin() == 2
    blocks = similarity.choose_blocks(measured, [2])
    metrics = {
        "weights": "",
        "blocks": blocks,
        "layers": 4,
        "calibration_fingerprint": "",
        "map": measured.map.tolist(),
    }
    params = {"study": "tiny", "run": "r"}
    path = write_record(
        tmp_path / "similarity.json", step="similarity", params=params, metrics=metrics | {"block_influence": [0.0]}
    )
    kept = read_record(path)["metrics"]
    assert pruning.chosen_start(kept["blocks"], 2) == blocks[0]["start"] == 0
    assert similarity.choose_block(np.array(kept["map"]), 2) == 0
    assert blocks[0]["distance"] == kept["map"][0][2] == 0.15


def test_stability_is_the_share_of_resamples_that_choose_the_same_block():
    clear = similarity.choose_blocks(with_distances([(0.3, 0.3), (0.1, 0.2)]), [2])
    assert (clear[0]["start"], clear[0]["stability"]) == (1, 1.0)
    # Block 0 is chosen where the first sample is drawn twice, which one resample in four does.
    torn = similarity.choose_blocks(with_distances([(0.1, 0.5), (0.4, 0.1)]), [2])
    assert torn[0]["start"] == 1
    assert torn[0]["stability"] == pytest.approx(0.75, abs=0.05)


def test_a_size_that_no_block_was_chosen_for_is_one_sentence():
    blocks = similarity.choose_blocks(with_distances([(0.3, 0.3), (0.1, 0.2)]), [2])
    assert pruning.chosen_start(blocks, 0) == 0
    with pytest.raises(ValueError, match="^block_size is 3, and 01 chose blocks of 0, 2 layers: add it to block_sizes"):
        pruning.chosen_start(blocks, 3)
