"""Kept distributions are the model's own; a killed writing goes on, and other weights or code begin anew."""

import pytest
import torch
from conftest import tiny_llama

from sdd_utils.steps import teacher

ROWS = [{"input_ids": [*range(5, 5 + n)], "completion_mask": [0] * 4 + [1] * (n - 4)} for n in (9, 20, 13, 16)]


@pytest.fixture
def original(tokenizer, tmp_path):
    return saved(tokenizer, tmp_path / "original", layers=4)


def saved(tokenizer, folder, **changes):
    tiny_llama(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def keys(rows):
    return [teacher.row_key(row["input_ids"], sum(row["completion_mask"])) for row in rows]


def places(original, folder):
    return teacher.places(folder, depends=teacher.depends_on(original))


def scored(monkeypatch, *, die_at=None):
    """The rows that a model reads, by their tokens; the one numbered `die_at` is not survived."""
    seen, plain = [], teacher._distributions

    def distributions(model, input_ids, trained):
        if len(seen) == die_at:
            raise KeyboardInterrupt
        seen.append(input_ids)
        return plain(model, input_ids, trained)

    monkeypatch.setattr(teacher, "_distributions", distributions)
    return seen


def test_what_is_read_back_is_what_plain_passes_give(tokenizer, original, tmp_path):
    said = teacher.write(original, {"original": ROWS[:2], "text": ROWS[2:]}, folder=tmp_path / "t")
    known, model = places(original, tmp_path / "t"), tiny_llama(tokenizer, layers=4)
    rests = []
    for row, key in zip(ROWS, keys(ROWS), strict=True):
        ids, log_probs = teacher.read(known[key])
        with torch.no_grad():
            expected = model(torch.tensor([row["input_ids"]])).logits[0, 3:-1].log_softmax(dim=-1)  # of token 4 on
        top, order = expected.sort(dim=-1, descending=True)
        assert ids.tolist() == order[:, : teacher.K].tolist()
        rest = top[:, teacher.K :].exp().sum(dim=-1)
        torch.testing.assert_close(log_probs[:, :-1], top[:, : teacher.K], atol=5e-3, rtol=0)  # half precision
        torch.testing.assert_close(log_probs[:, -1].exp(), rest, atol=1e-3, rtol=2e-3)
        torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(len(ids)))
        rests.append(rest)
    assert [(of["rows"], of["tokens"]) for of in said.values()] == [(2, 21), (2, 21)]
    assert said["text"]["rest"] == pytest.approx(float(torch.cat(rests[2:]).mean()), rel=1e-3)


def test_a_position_takes_as_many_bytes_as_the_documentation_says(tokenizer, original, tmp_path):
    rows = [{"input_ids": [i, *range(500)], "completion_mask": [0] + [1] * 500} for i in range(4)]
    rows = [{**row, "input_ids": [token % 250 for token in row["input_ids"]]} for row in rows]
    size = teacher.write(original, {"original": rows}, folder=tmp_path / "t")["original"]["bytes_per_token"]
    assert 258 < size < 260  # and a header


def test_tokens_of_a_large_vocabulary_are_read_back(tmp_path):
    ids, log_probs = torch.tensor([[3, 70_000, 262_143], [131_072, 65_535, 65_536]]), torch.full((2, 4), 0.25).log()
    part = [("a", ids[:1], log_probs[:1]), ("b", ids[1:], log_probs[1:])]
    teacher._write_part(part, folder=tmp_path, source="original", depends="d", words=262_144)
    known = teacher.places(tmp_path, depends="d")
    assert torch.cat([teacher.read(known[key])[0] for key in "ab"]).tolist() == ids.tolist()
    teacher._write_part(part, folder=tmp_path / "small", source="original", depends="d", words=65_536)
    large, small = (next(folder.glob("*.safetensors")).stat().st_size for folder in (tmp_path, tmp_path / "small"))
    assert large > small


def test_a_killed_writing_goes_on_and_ends_the_same(original, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "PART", 20)  # two rows each
    whole = teacher.write(original, {"original": ROWS}, folder=tmp_path / "whole")
    with monkeypatch.context() as context:
        scored(context, die_at=3)
        with pytest.raises(KeyboardInterrupt):
            teacher.write(original, {"original": ROWS}, folder=tmp_path / "cut")
    assert set(places(original, tmp_path / "cut")) == set(keys(ROWS[:2]))
    seen = scored(monkeypatch)
    assert teacher.write(original, {"original": ROWS}, folder=tmp_path / "cut") == whole
    assert seen == [row["input_ids"] for row in ROWS[2:]]
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "cut")]
    assert files[0] == files[1]
    teacher.write(original, {"original": ROWS}, folder=tmp_path / "cut")
    assert len(seen) == 2  # nothing was read again


def test_a_row_that_two_sources_share_is_read_once(original, tmp_path, monkeypatch):
    seen = scored(monkeypatch)
    said = teacher.write(original, {"original": ROWS, "distilled": ROWS[1:]}, folder=tmp_path / "t")
    assert len(seen) == len(ROWS)
    assert said["distilled"]["rows"] == 3
    fewer_trained = {**ROWS[0], "completion_mask": [0] * 6 + [1] * 3}
    teacher.write(original, {"original": [*ROWS, fewer_trained]}, folder=tmp_path / "t")
    assert len(seen) == len(ROWS) + 1


@pytest.mark.parametrize("changed", ["weights", "precision", "code"])
def test_other_weights_precision_or_code_begin_anew(changed, tokenizer, original, tmp_path, monkeypatch):
    teacher.write(original, {"original": ROWS}, folder=tmp_path / "t")
    before = {path.name for path in (tmp_path / "t").iterdir()}
    if changed == "weights":
        original = saved(tokenizer, tmp_path / "other", layers=3)
    elif changed == "precision":
        monkeypatch.setenv("SDD_DTYPE", "bfloat16")
    else:
        monkeypatch.setattr(teacher, "code_digest", lambda *_, **__: "other")
    assert not places(original, tmp_path / "t")
    with pytest.raises(ValueError, match="4 of 4 rows have no distributions of the unpruned model as it is now: run"):
        teacher.check_complete(places(original, tmp_path / "t"), ROWS)
    teacher.write(original, {"original": ROWS}, folder=tmp_path / "t")
    teacher.check_complete(places(original, tmp_path / "t"), ROWS)
    assert before.isdisjoint(path.name for path in (tmp_path / "t").iterdir())  # those are deleted


def test_rows_beyond_the_models_context_are_left_out(tokenizer, tmp_path):
    original = saved(tokenizer, tmp_path / "short", layers=2)
    long = {"input_ids": [7] * 2049, "completion_mask": [0] + [1] * 2048}
    assert teacher.write(original, {"original": [*ROWS, long]}, folder=tmp_path / "t")["original"]["rows"] == 4
