"""Of which commit the sources are, also where they were carried without their repository."""

import json

from sdd_utils import ROOT
from sdd_utils.base import provenance
from sdd_utils.base.files import digest, file_sha256

PACKED = ROOT / "work" / "gpu" / "parts" / "sources.json"
_SHARED = tuple(f"benchmarks/{name}.py" for name in ("distillation", "roofline", "some_rows"))
_PLACES = ("sdd_utils", *_SHARED, "profiles", "tests/gpu", "tests/tiny_models.py")
_KINDS = (".py", ".sh", ".yaml", ".json", ".txt")


def state() -> dict:
    """{commit, dirty, digest} of the sources, by the repository that they lie in, or as they were packed.

    Sources that were changed after they were packed are dirty; of those whose commit no one knows it is "".
    """
    commit, found = provenance._git("rev-parse", "HEAD"), _digest()
    if commit:
        dirty = bool(provenance._git("status", "--porcelain", "--", ":!results"))
        return {"commit": commit, "dirty": dirty, "digest": found}
    packed = json.loads(PACKED.read_text()) if PACKED.is_file() else {"commit": "", "dirty": True, "digest": found}
    return {"commit": packed["commit"], "dirty": packed["dirty"] or packed["digest"] != found, "digest": found}


def _digest() -> str:
    """Of every file of source that the check may run."""
    places = [ROOT / place for place in _PLACES]
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
    kept = sorted(file for file in files if file.suffix in _KINDS and "__pycache__" not in file.parts)
    return digest([[file.relative_to(ROOT).as_posix(), file_sha256(file)] for file in kept])
