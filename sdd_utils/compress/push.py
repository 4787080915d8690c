"""Upload a compressed folder to the hub: `HF_TOKEN=… make push OUT=compressed REPO=me/name`."""

import argparse
import sys
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from sdd_utils.compress.card import files_of


def push(folder: Path, repo: str) -> tuple[str, bool]:
    """Upload what `make compress` wrote into a folder, and nothing else, as the model `repo`.

    A repository that is not there yet is made, and private.

    Returns:
        its address, and whether it is public.

    Raises:
        ValueError, FileNotFoundError, OSError: no such folder or token, or the hub refuses; in one sentence.
    """
    names = files_of(folder)
    if not get_token():
        raise ValueError(f"no token says who uploads to {repo!r}: set HF_TOKEN to one that may write")
    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=names, commit_message="Compressed")
        public = not api.model_info(repo).private
    except HFValidationError as error:
        raise ValueError(f"repo {repo!r} is no name of a model on the hub: use owner/name") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"the hub finds no {repo!r} that this token may write to: check owner and token") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise OSError(f"{folder} was not uploaded to {repo!r} ({reason}): run the same command again") from error
    return str(commit.repo_url), public


def main() -> int:
    """Parse the command line and upload; exit status 2 and one sentence if that fails."""
    parser = argparse.ArgumentParser(prog="sdd_utils.compress.push", description=__doc__)
    parser.add_argument("folder", help="what `make compress` made")
    parser.add_argument("repo", help="owner/name on the hub")
    arguments = parser.parse_args()
    try:
        address, public = push(Path(arguments.folder), arguments.repo)
        print(f"uploaded: {address}, which is {'public' if public else 'private'}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
