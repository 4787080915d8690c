"""SLERP against its closed form, its end points and its geometry; streamed files load like any other."""

import math

import pytest
import torch
from conftest import tiny_llama
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdd_utils.engine import tensor_stream
from sdd_utils.steps import merging


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
    assert 5e-4 < angle < 2e-3  # its cosine in float32 is 1, or nearly


@pytest.mark.parametrize("t", [0, 0.0, 1, 1.0])
def test_end_points_are_the_parents(t):
    a, b = torch.randn(2, 8, 8).bfloat16()
    assert torch.equal(merging.slerp(a, b, t)[0], b if t else a)


def test_a_diverged_parent_is_not_taken_for_a_parallel_one():
    assert math.isnan(merging.angle(torch.tensor([1.0, math.nan]), torch.ones(2)))


def test_a_tensor_of_several_pieces_is_merged_as_a_whole(monkeypatch):
    a, b = torch.randn(2, 7, 11, dtype=torch.float64).float()
    whole, angle = merging.slerp(a, b, 0.3)
    monkeypatch.setattr(tensor_stream, "CHUNK", 10)
    merged, same = merging.slerp(a, b, 0.3)
    torch.testing.assert_close(merged, whole)
    assert same == pytest.approx(angle, rel=1e-6)


@given(st.floats(1e-6, 3.0), st.floats(0.5, 2), st.sampled_from([1, -1]))
def test_small_angles_are_those_of_float64(spread, scale, sign):
    a, noise = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    b = sign * scale * (a + spread * noise)
    x, y = a.double() / a.double().norm(), b.double() / b.double().norm()
    expected = 2 * math.atan2((x - y).norm(), (x + y).norm())  # Kahan's formula, exact at both ends
    assert merging.angle(a, b) == pytest.approx(expected, rel=1e-5, abs=1e-7)


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
    report = merging.merge_checkpoints(a, b, out=tmp_path / "merged", t=0.4)
    merged, left, right = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tmp_path / "merged", a, b))
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, merging.slerp(left[name], right[name], 0.4)[0]), name
    fell_back = [abs(math.cos(angle)) > merging.LERP_ABOVE for angle in report["angles"].values()]
    assert report["lerp_share"] == sum(fell_back) / len(fell_back)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings


def test_headers_are_read_once_per_file_not_per_tensor(parents, tmp_path, monkeypatch):
    """Parsing a header takes as long as it has tensors: once for each, and a merge grows with the square of them."""
    read, head = [], tensor_stream.header
    monkeypatch.setattr(tensor_stream, "header", lambda shard: read.append(shard) or head(shard))
    merging.merge_checkpoints(*parents, out=tmp_path / "merged", t=0.4)
    shards = sum(len(list(parent.glob("*.safetensors"))) for parent in parents)
    assert len(read) == shards


def test_lerp_is_the_weighted_mean_at_every_angle(parents, tmp_path):
    a, b = parents
    report = merging.merge_checkpoints(a, b, out=tmp_path / "chord", t=0.3, how="lerp")
    merging.merge_checkpoints(a, b, out=tmp_path / "arc", t=0.3)
    chord, arc, left, right = (
        AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tmp_path / "chord", tmp_path / "arc", a, b)
    )
    assert report["lerp_share"] < 1  # else the two would be the same
    for name, tensor in chord.items():
        wanted = torch.lerp(left[name].double(), right[name].double(), 0.3)
        torch.testing.assert_close(tensor.double(), wanted, rtol=2**-8, atol=1e-6)  # bfloat16 keeps 8 bits
    assert any(not torch.equal(chord[name], arc[name]) for name in chord)


def test_where_every_tensor_falls_back_slerp_and_lerp_write_the_same_file(parents, tmp_path):
    (a, _), model = parents, AutoModelForCausalLM.from_pretrained(parents[0])
    for parameter in model.parameters():
        parameter.data *= 1.05
    model.save_pretrained(tmp_path / "near", max_shard_size="60KB")
    reports = [
        merging.merge_checkpoints(a, tmp_path / "near", out=tmp_path / how, t=0.3, how=how) for how in ("slerp", "lerp")
    ]
    assert reports[0] == reports[1]
    assert reports[0]["lerp_share"] == 1
    shards = sorted(path.name for path in (tmp_path / "slerp").glob("*.safetensors"))
    assert [(tmp_path / "slerp" / n).read_bytes() for n in shards] == [
        (tmp_path / "lerp" / n).read_bytes() for n in shards
    ]


@pytest.mark.parametrize(("first", "second", "expected"), [
    (6, 4, [0, 1, 100, 101]), (5, 9, [0, 1, 2, 100, 101]), (1, 1, [0]),
])  # fmt: skip
def test_a_mixture_has_half_of_each_set_and_as_many_rows_as_the_smaller(first, second, expected):
    sets = [
        Dataset.from_dict({"input_ids": [[start + i] for i in range(n)]}) for start, n in ((0, first), (100, second))
    ]
    assert [ids for (ids,) in merging.mixture(*sets)["input_ids"]] == expected


def test_models_of_another_shape_are_refused_and_nothing_is_left(parents, tokenizer, tmp_path):
    tiny_llama(tokenizer, layers=4, tie_word_embeddings=True).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="differ in tensor 'model.layers.4"):
        merging.merge_checkpoints(parents[0], tmp_path / "other", out=tmp_path / "merged", t=0.5)
    assert not (tmp_path / "merged").exists()


def test_a_parent_that_was_cut_short_is_refused_and_nothing_is_left(parents, tmp_path):
    shard = max(parents[1].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match="ends within"):
        merging.merge_checkpoints(*parents, out=tmp_path / "merged", t=0.5)
    assert not (tmp_path / "merged").exists()
