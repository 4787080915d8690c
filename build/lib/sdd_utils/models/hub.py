"""Models on the hub: their names, their files in the hub's own cache, and what is said when they cannot be had."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_OTHER_FORMATS = ["consolidated*", "params.json", "original/*"]  # the same weights once more, for other loaders


def is_hub_id(name: str) -> bool:
    """Whether a model's name reads as `org/name[@revision]`."""
    return name.count("/") == 1 and ":" not in name and not name.startswith((".", "/", "work/"))


def downloaded(name: str, patterns: list[str]) -> Path:
    """The folder of a model `org/name[@revision]`; files that are there are not fetched again.

    Raises:
        FileNotFoundError, OSError: the model cannot be had, in one sentence.
    """
    repo, _, revision = name.partition("@")
    with _told(name):
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS)
        )


def downloaded_file(name: str, *, repo: str, revision: str | None, file: str) -> Path:
    """One file of a hub repository; raises what `downloaded` raises, and names the files of its kind that there are."""
    try:
        with _told(name):
            return Path(hf_hub_download(repo, file, revision=revision))
    except FileNotFoundError as error:
        if not isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise
    ending = Path(file).suffix
    there = [path for path in HfApi().list_repo_files(repo, revision=revision) if path.endswith(ending)]
    found = ", ".join(there) or f"no {ending} file"
    raise FileNotFoundError(f"model {name!r}: {repo} has no file {file!r}, it has {found}")


def has_file(*, repo: str, revision: str | None, file: str) -> bool:
    """Whether a file of a hub repository lies in the hub's cache."""
    return isinstance(try_to_load_from_cache(repo, file, revision=revision), str)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of the hub's client in one sentence."""
    try:
        yield
    except GatedRepoError as error:
        raise FileNotFoundError(f"model {name!r} is gated: accept its licence on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"model {name!r} is not on the hub: check the spelling of org/name") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"model {name!r} has no such revision on the hub: use a branch, tag or commit that its page lists"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, httpx2.HTTPError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(
                f"model {name!r}: the disk is full: free some space, or set HF_HOME to another disk"
            ) from error
        raise FileNotFoundError(
            f"model {name!r} is not all here and the hub cannot be reached ({type(error).__name__}): once it can, run "
            "the same command again, what has arrived is kept; or name a local folder"
        ) from error
