"""What is unpacked of llama.cpp's source, and what is said where its converter writes nothing, or another model.

The converter itself comes with a package of 77 MB, so a script stands in for it that writes a file made by llama.cpp's
own library.
"""

import io
import tarfile

import pytest
import tiny_gguf
import torch
from transformers import AutoModelForCausalLM

from sdd_utils.compress import gguf_export
from sdd_utils.models import gguf_files, store

COPIES = (
    "import shutil, sys\nfrom conversion import MADE\nshutil.copy(MADE, sys.argv[sys.argv.index('--outfile') + 1])\n"
)
# As the converter does with a tokenizer that it takes for another model's.
SPLITS_OTHERWISE = (
    "import sys\nfrom conversion import MADE\nout = sys.argv[sys.argv.index('--outfile') + 1]\n"
    "made = open(MADE, 'rb').read()\nassert b'qwen2' in made\n"
    "head, tail = made.split(b'tokenizer.ggml.pre')\n"
    "open(out, 'wb').write(head + b'tokenizer.ggml.pre' + tail.replace(b'qwen2', b'other', 1))\n"
)


@pytest.fixture(params=["llama", "qwen2"])
def place(request, tmp_path):
    """A compressed folder, and beside it the file that it should become."""
    model = tiny_gguf.model_of(request.param, tied=True)
    file = tiny_gguf.write(tmp_path / "made.gguf", tiny_gguf.tensors_of(model), family=request.param)
    read, tokenizer, _ = gguf_files.dequantise(str(file), check=store.check_decoder)
    read.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "result.json").write_text('{"files": []}')
    return tmp_path


def archive(place, script: str):
    """A source archive as the package's: the converter, a module that it imports, and much that nobody needs."""
    root = "package-1.0/vendor/llama.cpp"
    files = {f"{root}/convert_hf_to_gguf.py": script, f"{root}/ggml/src/ggml.c": "int main;"}
    files[f"{root}/conversion/__init__.py"] = f"MADE = {str(place / 'made.gguf')!r}\n"
    with tarfile.open(place / "source.tar.gz", "w:gz") as made:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            made.addfile(member, io.BytesIO(text.encode()))
    return place / "source.tar.gz"


def test_the_file_lies_beside_the_folder_and_holds_its_model(place):
    source = archive(place, COPIES)
    out = gguf_export.export(place / "out", source=source)
    assert out == place / "out.gguf"
    read, *_ = gguf_files.dequantise(str(out), check=store.check_decoder)
    ids = torch.arange(40)[None]
    folder = AutoModelForCausalLM.from_pretrained(place / "out", dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, folder(ids).logits)
    unpacked = gguf_export.unpacked(source, place / "unpacked")
    names = {path.relative_to(place / "unpacked").as_posix() for path in unpacked.parent.rglob("*") if path.is_file()}
    assert names == {"convert_hf_to_gguf.py", "conversion/__init__.py"}


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        (
            "raise SystemExit('Model TinyForCausalLM is not supported')",
            RuntimeError,
            "TinyForCausalLM is not supported",
        ),
        ("pass", RuntimeError, "cannot write this model (it says nothing)"),
        (COPIES, ValueError, "computes other logits than out"),
        (
            SPLITS_OTHERWISE,
            ValueError,
            "writes another model than out (transformers cannot split words as this GGUF does",
        ),
    ],
)
def test_what_is_not_the_model_is_told_and_not_kept(script, error, said, place):
    if error is ValueError:  # the folder is another model than the file
        model = AutoModelForCausalLM.from_pretrained(place / "out")
        model.model.norm.weight.data *= 2 * torch.rand_like(model.model.norm.weight)
        model.save_pretrained(place / "out")
    with pytest.raises(error) as told:
        gguf_export.export(place / "out", source=archive(place, script))
    assert said in str(told.value)
    assert not [path for path in place.rglob("*.gguf") if path.name != "made.gguf"]


def test_a_folder_from_elsewhere_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no compressed model: make it by 'make compress'"):
        gguf_export.export(tmp_path, source=tmp_path / "no.tar.gz")
