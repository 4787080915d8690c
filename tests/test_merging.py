"""SLERP against its closed form, its end points and its geometry; streamed files load like any other."""

import math

import pytest
import torch
from conftest import tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdd_utils import merging


@given(st.floats(0.1, math.pi - 0.1), st.floats(0, 1))
def test_closed_form_in_the_plane(angle, t):
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([math.cos(angle), math.sin(angle)])
    merged, measured = merging.slerp(a, b, t)
    assert measured == pytest.approx(angle, abs=1e-5)
    assert merged.tolist() == pytest.approx([math.cos(t * angle), math.sin(t * angle)], abs=1e-5)


@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_norm_stays_on_the_sphere_and_direction_is_symmetric(seed, t):
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(seed))
    a, b = a / a.norm(), b / b.norm()
    merged, _ = merging.slerp(a, b, t)
    assert merged.norm().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(merged, merging.slerp(b, a, 1 - t)[0])


def test_nearly_parallel_tensors_fall_back_to_lerp():
    a = torch.randn(1000)
    b = a + 1e-3 * torch.randn(1000)
    merged, angle = merging.slerp(a, b, 0.3)
    torch.testing.assert_close(merged, 0.7 * a + 0.3 * b)
    assert 5e-4 < angle < 2e-3  # float32 arithmetic could not tell such an angle from 0


@pytest.mark.parametrize("t", [0, 0.0, 1, 1.0])
def test_end_points_are_the_parents_bit_for_bit(t):
    a, b = torch.randn(2, 8, 8).bfloat16()
    assert torch.equal(merging.slerp(a, b, t)[0], b if t else a)


def test_zero_tensors_do_not_give_nan():
    assert not merging.slerp(torch.zeros(4), torch.ones(4), 0.5)[0].isnan().any()


@pytest.fixture
def parents(tokenizer, tmp_path):
    folders = []
    for seed, name in enumerate("ab"):
        model = tiny_llama(tokenizer, tie_word_embeddings=True)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.bfloat16().save_pretrained(tmp_path / name, max_shard_size="60KB")
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    return folders


def test_merged_checkpoint_is_the_tensorwise_slerp(parents, tmp_path):
    a, b = parents
    assert len(list(a.glob("*.safetensors"))) > 1  # several shards
    report = merging.merge(a, b, out=tmp_path / "merged", t=0.4)
    merged, left, right = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tmp_path / "merged", a, b))
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, merging.slerp(left[name], right[name], 0.4)[0]), name
    fell_back = [abs(math.cos(angle)) > merging.LERP_ABOVE for angle in report["angles"].values()]
    assert report["lerp_share"] == sum(fell_back) / len(fell_back)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings


def test_models_of_another_shape_are_refused_and_nothing_is_left(parents, tokenizer, tmp_path):
    tiny_llama(tokenizer, layers=4, tie_word_embeddings=True).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="differ in tensor 'model.layers.4"):
        merging.merge(parents[0], tmp_path / "other", out=tmp_path / "merged", t=0.5)
    assert not (tmp_path / "merged").exists()
