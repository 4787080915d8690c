"""A hub that drops every third download: what is fetched is right in the end, and nothing whole is fetched again."""

import hashlib
import json
import re
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sdd_utils.base.files import file_sha256, write_json_lines
from sdd_utils.data.rows import load_rows
from sdd_utils.models import store
from tests import tiny_models
from tests.faults import place as places

REPOSITORIES = {"models": "faults/tiny-llama", "datasets": "faults/questions"}
STUDY = places.TINY | {
    "model": REPOSITORIES["models"], "data_sets": {"questions": 12, "pydoc": 12},
    "own_data": {"questions": {"source": REPOSITORIES["datasets"], "test_split": "test"}},
    "tasks": {"pydoc_gold": 4}, "chat_tasks": [], "in_domain": {}, "calibration_sets": ["questions"],
    "merge_pairs": [["questions", "pydoc"]],
}  # fmt: skip
AT_MOST = 20  # commands until all must be there


def hub(tries: int) -> dict:
    """`make prefetch` from a hub that works, and from one that drops, into empty caches; each dropped file is a try."""
    folder = places.WORK / places.code_digest()[:8]
    wanted, _, _ = _fetched(folder / "hub-reference", every=0)
    found = [_fetched(folder / f"hub-{count}", every=3) for count in range(tries)]
    survived = [dropped for files, dropped, _ in found if files == wanted]
    print(f"hub: {len(wanted)} files; {len(survived)} of {tries} times all of them came", flush=True)
    return {
        "tried": sum(dropped for _, dropped, _ in found),
        "survived": sum(survived),
        "rows_lost": sum(again for _, _, again in found),
    }


def _fetched(folder: Path, *, every: int) -> tuple[dict[str, str], int, int]:
    """Fetch until all is here, from a hub that drops every so many downloads.

    Returns:
        the digests of all files that came, by path; how many downloads were dropped; and how many files that were
        whole were sent once more.
    """
    shutil.rmtree(folder, ignore_errors=True)  # it takes seconds: an interrupted part begins anew
    place = places.make(folder, STUDY)
    with _served(_repositories(folder / "hub"), every=every) as (address, sent):
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
        for _ in range(AT_MOST):
            status = places.start(place, module="sweep.prefetch", arguments=(places.STUDY,), **environment).wait()
            if status == 0 or "run the same command again" not in places.said(place):
                break
    kept = [*(folder / "hf" / "hub").glob("*/snapshots/*/**/*"), *(folder / "work" / "data").rglob("*.jsonl")]
    files = {str(path.relative_to(folder)): file_sha256(path) for path in kept if path.is_file()}
    whole = Counter(name for name, was_whole in sent if was_whole)
    again = sum(count - 1 for count in whole.values())
    return files if status == 0 else {}, sum(not was_whole for _, was_whole in sent), again


def _repositories(root: Path) -> Path:
    """A model in several files, and a data set, as a hub lays them out."""
    rows = [
        {"instruction": row["instruction"], "response": row["response"]}
        for row in load_rows("pydoc", split="train", rows=60)
    ]
    data = root / "datasets" / REPOSITORIES["datasets"]
    for split, part in (("train", rows[:48]), ("test", rows[48:])):
        write_json_lines(data / f"{split}.jsonl", part)
    model, tokenizer = store.load_model(tiny_models.write("llama", root / "whole"))
    model.save_pretrained(root / "models" / REPOSITORIES["models"], max_shard_size="300KB")
    tokenizer.save_pretrained(root / "models" / REPOSITORIES["models"])
    return root


@contextmanager
def _served(root: Path, *, every: int) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """A hub on the loopback interface; its address, and a list of (file, whether it was sent whole) that grows."""
    sent: list[tuple[str, bool]] = []
    handler = type("Handler", (_Hub,), {"root": root, "every": every, "sent": sent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()


class _Hub(BaseHTTPRequestHandler):
    """The few addresses that clients of a hub ask: a repository, its tree, and its files, whole or from a byte on."""

    protocol_version = "HTTP/1.1"
    root: Path
    every: int
    sent: list
    _API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+(?:/(.*))?)?")
    _FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")

    def log_message(self, *_) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        if found := self._API.fullmatch(path):
            kind, name, what, below = found.groups()
            self._answer(self.root / kind / name, what, below or "", asked)
        elif found := self._FILE.fullmatch(path):
            kind, name, file = found.groups()
            self._file(self.root / (kind or "models") / name, file)
        else:
            self._reply(404, b"")

    do_HEAD = do_POST = do_GET

    def _answer(self, folder: Path, what: str | None, below: str, asked: str) -> None:
        files = _files(folder)
        if not files:
            return self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        if what == "tree":
            content = [_entry(folder, name) for name in files if name.startswith(below)]
        elif what == "paths-info":
            paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked).get("paths", [])
            content = [_entry(folder, name) for name in files if name in paths]
        else:
            siblings = [{"rfilename": name} for name in files]
            content = {"_id": folder.name, "id": folder.name, "sha": _commit(folder), "siblings": siblings}
            content |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return self._reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, folder: Path, name: str) -> None:
        path = folder / name
        if not path.is_file():
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _commit(folder)})
        data, first = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(first[1]), int(first[2] or len(data) - 1)) if first else (0, len(data) - 1)
        about = {"ETag": f'"{_entry(folder, name)["oid"]}"', "X-Repo-Commit": _commit(folder), "Accept-Ranges": "bytes"}
        about |= {"Content-Range": f"bytes {start}-{end}/{len(data)}"} if first else {}
        return self._reply(206 if first else 200, data[start : end + 1], about, file=name)

    def _reply(self, status: int, body: bytes, headers: dict | None = None, *, file: str = "") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        drop = bool(file and self.every and (len(self.sent) + 1) % self.every == 0)
        if file:
            self.sent.append((file, not drop))
        self.wfile.write(body[: len(body) // 2] if drop else body)
        if drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, name: str) -> dict:
    data = (folder / name).read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "oid": oid, "size": len(data), "path": name}


def _commit(folder: Path) -> str:
    return hashlib.sha1("".join(_entry(folder, name)["oid"] for name in _files(folder)).encode()).hexdigest()
