"""The same layers cut out by llama.cpp and by us, both read by llama.cpp; for `serving`.

    make work/llama.cpp/llama-quantize

builds llama.cpp's own tool from the source that `make gguf` keeps.
"""

import subprocess
from pathlib import Path

import torch
import yaml

from sdd_utils import ROOT
from sdd_utils.compress import gguf_export
from sdd_utils.compress.card import RECIPE
from sdd_utils.models import store
from sdd_utils.steps import pruning

PLACE = ROOT / "work" / "llama.cpp"
TOOL = PLACE / "llama-quantize"


def cut_twice(folder: Path, scratch: Path) -> dict[str, Path]:
    """GGUF files of the uncut model of a compressed folder without its block: cut by llama.cpp, and by us.

    Nothing is healed in either. Needs the model where the folder's recipe says it lies.
    """
    made = yaml.safe_load((folder / RECIPE).read_text())
    model, tokenizer = store.load_model(made["request"]["model"], dtype=torch.bfloat16)
    block = {name: made["made"]["block"][name] for name in ("start", "block_size")}
    (archive,) = PLACE.glob("*.tar.gz")
    script = gguf_export.unpacked(archive, scratch)
    uncut = _as_gguf(model, tokenizer, scratch / "uncut", script=script)
    files = {"llama.cpp": scratch / "by_llama_cpp.gguf"}
    layers = range(block["start"], block["start"] + block["block_size"])
    asked = ["--prune-layers", ",".join(map(str, layers)), str(uncut), str(files["llama.cpp"]), "COPY"]
    subprocess.run([TOOL, *asked], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return files | {"ours": _as_gguf(pruning.remove_block(model, **block), tokenizer, scratch / "ours", script=script)}


def _as_gguf(model, tokenizer, folder: Path, *, script: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return gguf_export.convert(folder, folder.with_suffix(".gguf"), script=script)
