"""What is known of the original: its id on the hub and its licence, which the compressed model carries over."""

from pathlib import Path

import gguf
import httpx2
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from yaml import YAMLError

from sdd_utils.models import catalogue, gguf_files, hub

CARRIED = ("license", "license_name", "license_link", "language")
_UNREACHED = (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx2.HTTPError, ValueError, YAMLError)


def metadata_of(model: str) -> dict:
    """The hub's metadata for a model that was made of another: {base_model, base_model_relation, license, ...}.

    What is not known here is left out: a model card that is missing or cannot be reached is no error.

    Args:
        model: as `Settings.model` has it, so a local one by its absolute path.
    """
    if Path(model).is_dir():
        return _of_card(Path(model) / "README.md")
    file_on_hub = not Path(model).exists() and model not in catalogue.CATALOGUE
    repo, _, revision = model.partition(":")[0].partition("@")
    if file_on_hub and hub.is_hub_id(repo):
        return {"base_model": repo, "base_model_relation": "finetune"} | _of_repository(repo, revision or None)
    return _of_gguf(model) if gguf_files.is_gguf(model) else {}


def _of_repository(repo: str, revision: str | None) -> dict:
    try:
        return _of_card(Path(hf_hub_download(repo, "README.md", revision=revision)))
    except _UNREACHED:
        return {}


def _of_card(card: Path) -> dict:
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    except _UNREACHED:
        return {}
    return {name: data[name] for name in CARRIED if data.get(name)}


def _of_gguf(model: str) -> dict:
    field = gguf.GGUFReader(gguf_files.locate(model)).get_field("general.license")
    return {"license": field.contents()} if field else {}
