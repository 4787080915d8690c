"""A compressed folder as one GGUF file, by llama.cpp's own converter: `make gguf OUT=compressed`."""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
import transformers

from sdd_utils.base import disk
from sdd_utils.compress.card import files_of
from sdd_utils.models import checkpoints, gguf_files, store

SCRIPT = "convert_hf_to_gguf.py"
_CONVERTER = re.compile(rf"/llama\.cpp/({re.escape(SCRIPT)}|conversion/[^/]+\.py|gguf-py/gguf/.+\.py)$")
PRECISION = "bf16"  # of matrices, as in the folder; llama.cpp keeps vectors in float32


def export(folder: Path, *, source: Path) -> Path:
    """Write `<folder>.gguf` beside a folder, whole or not at all, and read it back.

    Args:
        source: an archive that holds llama.cpp's source.

    Raises:
        FileNotFoundError: no such folder.
        RuntimeError: the converter does not know the model or its tokenizer.
        ValueError: read back, the file is another model than the folder's.
    """
    files_of(folder)  # one from elsewhere is told before any work
    folder = folder.absolute()
    out = folder.with_name(f"{folder.name}.gguf")
    part = out.with_name(f".{out.stem}-unfinished.gguf")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            convert(folder, part, script=unpacked(source, Path(scratch)))
        check(folder, part)
        return part.rename(out)
    finally:
        part.unlink(missing_ok=True)


def unpacked(source: Path, folder: Path) -> Path:
    """Unpack the converter, and what it imports, out of an archive; returns its script."""
    with tarfile.open(source) as archive:
        for member in archive:
            if wanted := _CONVERTER.search(member.name):
                archive.extract(member.replace(name=wanted[1], deep=False), folder, filter="data")
    return folder / SCRIPT


def convert(folder: Path, out: Path, *, script: Path) -> Path:
    """Write a folder of safetensors as a GGUF file, by the script that `unpacked` returned.

    Raises:
        RuntimeError: the converter does not know the model or its tokenizer.
    """
    command = [sys.executable, str(script), str(folder), "--outfile", str(out), "--outtype", PRECISION]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise RuntimeError(f"llama.cpp's converter cannot write this model ({last[:150]})")
    return out


def check(folder: Path, file: Path) -> None:
    """Raise ValueError, in one sentence, unless a file computes the logits of the folder that it was made of."""
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    try:
        written, *_ = gguf_files.dequantise(str(file), check=store.check_decoder)
    except ValueError as error:
        why = str(error).removeprefix(f"model '{file}': ").removesuffix(": use its safetensors")
        raise ValueError(f"llama.cpp's converter writes another model than {folder.name} ({why}): use it") from None
    gap = checkpoints.largest_gap(*(checkpoints.some_logits(model.eval()) for model in (wanted, written)))
    if gap > checkpoints.LARGEST_GAP:
        raise ValueError(f"{file.name} computes other logits than {folder.name}: use the folder")


def main() -> int:
    """Parse the command line and convert; exit status 2 and one sentence if that fails."""
    parser = argparse.ArgumentParser(prog="sdd_utils.compress.gguf_export", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `make compress` made")
    parser.add_argument("--source", type=Path, required=True, help="an archive with llama.cpp's source")
    arguments = parser.parse_args()
    try:
        with disk.told():
            print(f"written: {export(arguments.folder, source=arguments.source)}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
