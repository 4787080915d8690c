"""Where a model comes from, and what is said when it cannot be had."""

import copy
import json
import os
import shutil
from fnmatch import fnmatch

import httpx2
import numpy as np
import pytest
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from tokenizers import processors

from sdd_utils.models import hub, store

RESPONSE = httpx2.Response(403, request=httpx2.Request("GET", "https://example.org"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "no-such-model",
            r"model 'no-such-model' does not exist: use one of smollm2-135m-instruct, gemma3-270m, an existing folder",
        ),
        ("tests", "model 'tests' is a folder without config.json"),
    ],
)
def test_wrong_names_are_told(name, said):
    with pytest.raises(FileNotFoundError, match=said):
        store.find_model(name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatedRepoError("gated", response=RESPONSE), "is gated: accept its licence on the hub and set HF_TOKEN"),
        (RepositoryNotFoundError("no", response=RESPONSE), "is not on the hub: check the spelling of org/name"),
        (httpx2.ReadError("connection reset"), "run the same command again, what has arrived is kept"),
        (OSError(28, "No space left on device"), "the disk is full: free some space, or set HF_HOME"),
    ],
)
def test_trouble_with_the_hub_is_one_sentence(monkeypatch, error, said):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match=said) as told:
        store.find_model("org/name@abc")
    assert "\n" not in str(told.value)


def test_only_weights_that_hold_no_code_are_fetched(monkeypatch):
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **settings: asked.update(settings, repo=repo) or "x")
    store.find_model("org/name@abc")
    assert (asked["repo"], asked["revision"]) == ("org/name", "abc")
    assert not any(pattern.endswith((".bin", ".py", ".pt", ".pkl")) for pattern in asked["allow_patterns"])
    assert any(fnmatch("consolidated.safetensors", pattern) for pattern in asked["ignore_patterns"])
    assert not any(fnmatch("model-00001-of-00002.safetensors", pattern) for pattern in asked["ignore_patterns"])


def test_a_template_that_prints_the_date_prints_one_day(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "m")
    own = store.load_tokenizer(folder)
    own.chat_template = "  Today is {{ strftime_now('%d %b %Y') }}. {{ messages[0]['content'] }}"
    own.save_pretrained(folder)
    for _ in range(2):  # read, written and read again
        loaded = store.load_tokenizer(folder)
        said = loaded.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
        assert said == "  Today is 26 Jul 2024. Hello"
        loaded.save_pretrained(folder)


def test_weights_that_changed_in_their_place_are_other_weights(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = store.identity(folder)
    assert store.identity(folder) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])  # as long as before
    os.utime(weights, ns=(0, 0))
    assert store.identity(folder) != before
    assert store.identity(shutil.copytree(folder, tmp_path / "elsewhere")) == store.identity(folder)
    (folder / "manifest.json").write_text('{"sha256": {"model.safetensors": "abc"}}')
    assert store.identity(folder) == {"model.safetensors": "abc"}


def test_weights_of_the_hubs_cache_are_named_by_their_hash_wherever_they_lie(tmp_path):
    digests = []
    for place in ("here", "there"):
        blobs, snapshot = tmp_path / place / "blobs", tmp_path / place / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        (blobs / "f00d").write_bytes(b"weights")
        (snapshot / "model.safetensors").symlink_to("../../blobs/f00d")
        (snapshot / "config.json").write_text("{}")
        assert store.identity(snapshot) == {"model.safetensors": "f00d"}
        digests.append(store.weights_digest(snapshot))
    assert digests[0] == digests[1]


def test_a_checkpoint_says_which_model_it_was_cut_from(model_folder, tokenizer, tmp_path):
    model, _ = store.load_model(model_folder)
    recipe = {"original": store.weights_digest(model_folder)}
    checkpoint = store.save_model(model, tokenizer, folder=tmp_path / "n0", parent="x", recipe=recipe)
    store.check_original(checkpoint, store.weights_digest(model_folder))
    for other in (checkpoint, model_folder):  # other weights; and a folder that says nothing
        with pytest.raises(ValueError, match=r"was cut from another model: run notebooks/02_pruning.ipynb"):
            store.check_original(other, "of another model")


def test_a_padding_token_outside_the_embedding_is_not_used(model, tokenizer, tmp_path):
    """Some tokenizers got one after their model was trained."""
    from sdd_utils.steps import similarity

    extended = copy.deepcopy(tokenizer)
    extended.add_special_tokens({"pad_token": "[PAD]"})
    model.save_pretrained(tmp_path)
    extended.save_pretrained(tmp_path)
    loaded, own = store.load_model(tmp_path)
    assert own.pad_token_id == own.eos_token_id < model.config.vocab_size <= extended.pad_token_id
    texts = ["short", "a longer one"]
    together, apart = (
        similarity.measure_similarity(loaded, own, texts, batch_size=rows, max_length=64).distances for rows in (2, 1)
    )
    assert np.abs(together - apart).max() < 1e-5


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("T5Config", "is an encoder-decoder"),
        ("CLIPConfig", "has no causal language model in transformers"),
        ("BltConfig", "has no one list of decoder layers"),
    ],
)
def test_models_of_other_kinds_are_told_before_their_weights_are_read(config, said, tmp_path):
    getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{said}: use a decoder-only causal language model"):
        store.load_model(tmp_path)


def test_a_tokenizer_that_appends_its_end_token_is_refused(model_folder, tokenizer, tmp_path):
    folder, ending = shutil.copytree(model_folder, tmp_path / "m"), copy.deepcopy(tokenizer)
    end = ending.eos_token
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ending.eos_token_id)]
    )
    ending.save_pretrained(folder)
    with pytest.raises(ValueError, match="appends its end token to every text: set add_eos_token to false"):
        store.load_tokenizer(folder)


def test_partial_rotary_shares_have_their_names_of_version_4(tokenizer, tmp_path):
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rotary = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    for kind, names in (
        ("glm", {"partial_rotary_factor": 0.5, "rope_theta": 5000.0}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 5000.0}),
    ):
        config = transformers.AutoConfig.for_model(kind, vocab_size=300, pad_token_id=0, rope_parameters=rotary, **size)
        model = transformers.AutoModelForCausalLM.from_config(config)
        folder = store.save_model(model, tokenizer, folder=tmp_path / kind, parent="x", recipe={})
        assert names.items() <= json.loads((folder / "config.json").read_text()).items()
