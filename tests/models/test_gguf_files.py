"""GGUF files as models: weights, tied heads, tokenizer and ends, and what is said of files that cannot be read."""

import json
import shutil

import gguf
import httpx2
import numpy as np
import pytest
import tiny_gguf
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RevisionNotFoundError

from sdd_utils.base.files import file_sha256
from sdd_utils.models import architecture, chat_format, gguf_files, hub, store

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://example.org"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def tied_file(tmp_path):
    return tiny_gguf.write(
        tmp_path / "tiny.gguf", tiny_gguf.tensors_of(tiny_gguf.model_of("qwen2", tied=True)), family="qwen2"
    )


def parameters_of(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_gives_the_model_that_it_holds(family, tied, cache, tmp_path):
    original = tiny_gguf.model_of(family, tied=tied)
    file = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.tensors_of(original), family=family)
    name = str(file)
    planned, _ = architecture.find_config(name)
    assert not cache.exists(), "a plan converts nothing"
    model, _ = store.load_model(name, dtype=torch.float32)
    ids = torch.randint(0, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, original(ids).logits, atol=1e-4)
    assert model.config.tie_word_embeddings == planned.tie_word_embeddings == tied
    assert architecture.account(planned).parameters == parameters_of(model) == parameters_of(original)
    manifest = store.read_manifest(store.find_model(name))
    assert manifest["recipe"] == {
        "gguf": "tiny.gguf",
        "gguf_sha256": file_sha256(tmp_path / "tiny.gguf"),
        "dequantised": True,
    }
    assert {path.suffix for path in store.find_model(name).iterdir()} == {".safetensors", ".json", ".jinja"}


@pytest.mark.parametrize(
    ("embedding", "head", "kept"),
    [("Q4_0", "Q8_0", HEAD), ("Q8_0", "Q5_1", EMBEDDING), ("F16", "Q4_1", EMBEDDING), ("Q8_0", "BF16", HEAD)],
)
def test_a_tied_matrix_that_is_quantised_twice_is_one_again_the_more_precise(embedding, head, kept, cache, tmp_path):
    original = tiny_gguf.model_of("qwen2", tied=True)
    tensors, types = tiny_gguf.tensors_of(original), {EMBEDDING: embedding, HEAD: head}
    both = tensors | {HEAD: tensors[EMBEDDING]}
    file = tiny_gguf.write(tmp_path / "t.gguf", both, family="qwen2", types=types)
    planned, _ = architecture.find_config(str(file))
    model, _ = store.load_model(str(file), dtype=torch.float32)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert architecture.account(planned).parameters == parameters_of(model) == parameters_of(original)
    kind = gguf.GGMLQuantizationType[types[kept]]
    precise = gguf.dequantize(gguf.quantize(tensors[EMBEDDING], kind), kind)
    assert torch.equal(model.get_input_embeddings().weight, torch.tensor(precise).to(torch.bfloat16).float())
    folder = store.find_model(str(file))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert store.read_manifest(folder)["recipe"]["tied"] == kept


@pytest.mark.parametrize(("types", "noise"), [("Q8_0", 0.05), ("Q4_0", 0.4)])
def test_a_head_that_was_trained_apart_stays_apart(types, noise, cache, tmp_path):
    tensors = tiny_gguf.tensors_of(tiny_gguf.model_of("qwen2", tied=True))
    matrix = tensors[EMBEDDING]
    away = np.random.default_rng(0).standard_normal(matrix.shape).astype(np.float32)
    tensors[HEAD] = matrix + noise * away * np.linalg.norm(matrix) / np.linalg.norm(away)
    file = tiny_gguf.write(tmp_path / "t.gguf", tensors, family="qwen2", types={EMBEDDING: types, HEAD: types})
    model, _ = store.load_model(str(file), dtype=torch.float32)
    gap = (model.get_output_embeddings().weight - model.get_input_embeddings().weight).norm() / np.linalg.norm(matrix)
    assert not model.config.tie_word_embeddings
    assert noise / 2 < gap < noise * 2


def test_the_tokenizer_and_its_chat_format_come_out_of_the_file(cache, tied_file):
    tokenizer = store.load_tokenizer(str(tied_file))
    vocabulary = tiny_gguf.vocabulary()
    assert tokenizer("ab<|im_end|>b")["input_ids"] == [vocabulary.index(token) for token in ("ab", "<|im_end|>", "b")]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert chat_format.render(tokenizer, asked) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    ends = [vocabulary.index(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert store.end_tokens(str(tied_file)) == ends
    assert json.loads((store.find_model(str(tied_file)) / "generation_config.json").read_text())["eos_token_id"] == ends


def test_what_lies_beside_a_file_is_not_read(cache, tied_file):
    for name in ("tokenizer_config.json", "config.json", "adapter_config.json", "generation_config.json"):
        (tied_file.parent / name).write_text("no JSON")
    model, tokenizer = store.load_model(str(tied_file))
    assert model.config.num_hidden_layers == 3
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_file_is_converted_once_and_another_of_its_name_again(cache, tied_file, monkeypatch):
    first = store.find_model(str(tied_file))
    with monkeypatch.context() as forbidden:
        forbidden.setattr(gguf_files, "dequantise", None)
        assert store.find_model(str(tied_file)) == first
        assert store.load_config(str(tied_file)).hidden_size == 64
    tensors = tiny_gguf.tensors_of(tiny_gguf.model_of("llama", tied=True))
    tiny_gguf.write(tied_file, tensors, family="llama")
    second = store.find_model(str(tied_file))
    assert first != second
    assert store.load_config(str(tied_file)).model_type == "llama"
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted([first.name, second.name])


def without(tensors: dict, name: str) -> dict:
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "fields", "said"),
    [
        (dict, {"qwen2__rope__scaling__type": "yarn"}, r"does not read how a GGUF scales positions \(yarn\)"),
        (dict, {"tokenizer__ggml__pre": "new-way"}, r"cannot split words as this GGUF does \(new-way\)"),
        (dict, {"split__count": 2}, "is one of several parts: merge them"),
        (dict, {"general__architecture": "plamo"}, r"cannot read this GGUF file \(GGUF model with architecture plamo"),
        (
            lambda all_: without(all_, "blk.1.ffn_up.weight"),
            {},
            "lacks 1 tensors that it needs, such as model",
        ),
        (lambda all_: all_ | {"blk.1.attn_output.bias": np.ones(64, np.float32)}, {}, "leaves 64 numbers of the file"),
        (lambda all_: all_ | {"rope_factors_long.weight": np.ones(8, np.float32)}, {}, "leaves 8 numbers of the file"),
        (lambda all_: all_ | {"rope_freqs.weight": np.full(8, 2, np.float32)}, {}, "scaled otherwise than Llama 3's"),
        (dict, {"qwen2__embedding_length": 32}, "cannot read this GGUF file"),
    ],
)
def test_a_file_that_would_be_read_as_another_model_is_refused(change, fields, said, cache, tmp_path):
    tensors = change(tiny_gguf.tensors_of(tiny_gguf.model_of("qwen2", tied=True)))
    file = tiny_gguf.write(tmp_path / "t.gguf", tensors, family="qwen2", **fields)
    with pytest.raises(ValueError, match=said) as told:
        store.find_model(str(file))
    assert "\n" not in str(told.value)
    assert not any(path.is_dir() for path in cache.iterdir()), "nothing half made stays"


def test_models_of_other_kinds_are_told(cache, tmp_path):
    tensors = tiny_gguf.tensors_of(tiny_gguf.model_of("qwen2", tied=True))
    file = tiny_gguf.write(tmp_path / "t.gguf", tensors, family="t5")
    with pytest.raises(ValueError, match="is an encoder-decoder: use a decoder-only causal language model"):
        store.find_model(str(file))


@pytest.mark.parametrize("share", [0.0002, 0.01, 0.3, 0.999])
def test_a_file_that_is_not_all_there_is_told(share, cache, tied_file):
    whole = tied_file.read_bytes()
    tied_file.write_bytes(whole[: int(len(whole) * share)])
    said = r"is a damaged GGUF file, or not all of it \(.+\): fetch it again"
    for read in (store.find_model, store.load_config, architecture.find_config):
        with pytest.raises(ValueError, match=said):
            read(str(tied_file))


def test_files_that_are_none_are_told(cache, tmp_path):
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="is no GGUF file, as it does not begin with 'GGUF'"):
        store.find_model(str(tmp_path / "page.gguf"))
    with pytest.raises(FileNotFoundError, match=r"does not exist: name a \.gguf file by its path"):
        store.find_model("no/such/file.gguf")
    with pytest.raises(ValueError, match=r"is one of several parts: merge them"):
        store.find_model("org/name:big-00001-of-00003.gguf")
    with pytest.raises(FileNotFoundError, match=r"or on the hub org/name\[@revision\] or org/name:file\.gguf"):
        store.find_model("org/name:Q4_K_M")


def test_llama_3s_positions_are_read(cache, tmp_path):
    tensors = tiny_gguf.tensors_of(tiny_gguf.model_of("llama", tied=True))
    frequencies = 1 / 1e4 ** (np.arange(8) / 8)
    turns = 8192 * frequencies / (2 * np.pi)  # of each pair over the context of the training
    kept = np.clip((turns - 1) / (4 - 1), 0, 1)  # Llama 3.1: all of it beyond four turns, an eighth below one
    tensors["rope_freqs.weight"] = (1 / (kept + (1 - kept) / 8)).astype(np.float32)
    file = tiny_gguf.write(tmp_path / "t.gguf", tensors, family="llama")
    model, _ = store.load_model(str(file), dtype=torch.float32)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert np.allclose(model.model.rotary_emb.inv_freq, frequencies / tensors["rope_freqs.weight"], rtol=1e-5)


@pytest.fixture
def stand_in_hub(tied_file, tmp_path, monkeypatch):
    """The hub's cache with one repository, of one commit."""
    snapshot = tmp_path / "snapshots" / "c0ffee" / "files"
    snapshot.mkdir(parents=True)
    shutil.copy(tied_file, snapshot)

    def download(repo, file, *, revision):
        if revision == "unknown":
            raise RevisionNotFoundError("no", response=RESPONSE)
        if revision == "offline":
            raise LocalEntryNotFoundError("no")
        if not (snapshot.parent / file).is_file():
            raise RemoteEntryNotFoundError("no", response=RESPONSE)
        return str(snapshot.parent / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda *_, **__: ["README.md", "files/tiny.gguf", "a.gguf"])
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file, revision: None)


def test_a_file_on_the_hub_is_fetched_and_its_commit_recorded(cache, stand_in_hub, tied_file):
    folder = store.find_model("org/name@v1:files/tiny.gguf")
    recipe = store.read_manifest(folder)["recipe"]
    assert (recipe["hub"], recipe["revision"], recipe["commit"]) == ("org/name", "v1", "c0ffee")
    assert recipe["gguf_sha256"] == file_sha256(tied_file)
    assert folder.name == f"org--name--tiny-{recipe['gguf_sha256'][:12]}"
    assert store.find_model("org/name:files/tiny.gguf") == folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/name:b.gguf", r"org/name has no file 'b\.gguf', it has files/tiny\.gguf, a\.gguf$"),
        ("org/name@unknown:files/tiny.gguf", "has no such revision on the hub"),
        ("org/name@offline:files/tiny.gguf", "run the same command again, what has arrived is kept"),
    ],
)
def test_trouble_with_a_file_on_the_hub_is_one_sentence(name, said, cache, stand_in_hub):
    with pytest.raises(FileNotFoundError, match=said):
        store.find_model(name)


def test_a_plan_asks_for_the_file_first_and_fetches_nothing(cache, stand_in_hub):
    with pytest.raises(FileNotFoundError, match="only the file says its size: run 'make prefetch' first"):
        architecture.find_config("org/name:files/tiny.gguf")
