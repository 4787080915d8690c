"""Uploading by huggingface_hub itself, to a loopback hub that keeps what it is sent."""

import base64
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from sdd_utils import ROOT

TOKEN = "hf_of_a_test"
FILES = {  # and `result.json`, which names them all
    "README.md": "---\nlibrary_name: transformers\n---\n\n# A model\n",
    "recipe.yaml": "request: {}\n",
    "config.json": "{}",
    "model.safetensors": "weights",
    "figures/scores.png": "a picture",
}


PRIVATE = ("notes.txt", "train.json", "other/model.safetensors", "model.part.gguf", ".secret.json")


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload needs; one token may write to one owner's models."""

    def do_GET(self):
        self._answer({"id": "me/small", "sha": "0" * 40, "siblings": [], "private": not self.server.public})

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid credentials"}, status=401)
        if self.path.endswith("/repos/create"):
            self.server.made.append(json.loads(sent))
            return self._answer({"url": f"{self.server.address}/me/small", "id": "me/small"})
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(sent)["files"]]  # fmt: skip
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"]).decode()
            return self._answer({"commitUrl": f"{self.server.address}/me/small/commit/0", "commitOid": "0" * 40})
        return self._answer({"errors": [], "warnings": []})

    def _answer(self, content: dict, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    found.address, found.files, found.made, found.public = f"http://127.0.0.1:{found.server_port}", {}, [], False
    Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


@pytest.fixture
def folder(tmp_path):
    named = {"result.json": json.dumps({"files": [*FILES, "result.json"]})}
    for name, text in (FILES | named | dict.fromkeys(PRIVATE, "mine")).items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    return tmp_path / "out"


def push(folder, server, *, token: str = TOKEN, repo: str = "me/small"):
    changed = {
        "HF_ENDPOINT": server.address,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder.parent / "hf"),
    }
    environment = os.environ | changed
    command = [sys.executable, "-m", "sdd_utils.compress.push", str(folder), repo]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_files_of_a_compressed_model_arrive_and_no_others(folder, server):
    done = push(folder, server)
    assert done.returncode == 0, done.stderr
    assert server.files.keys() == {*FILES, "result.json"}
    assert {name: server.files[name] for name in FILES} == FILES
    assert server.made[0]["visibility"] == "private"
    assert f"uploaded: {server.address}/me/small, which is private" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_a_public_repository_is_told_as_such(folder, server):
    server.public = True
    assert "which is public" in push(folder, server).stdout


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token": ""}, "no token says who uploads to 'me/small': set HF_TOKEN"),
        ({"token": "hf_of_another"}, "was not uploaded to 'me/small'"),
        ({"repo": "no name at all"}, "repo 'no name at all' is no name of a model on the hub: use owner/name"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(changed, said, folder, server):
    done = push(folder, server, **changed)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not server.files


def test_a_folder_that_was_not_made_here_is_not_uploaded(folder, server):
    (folder / "result.json").unlink()
    done = push(folder, server)
    assert (done.returncode, "is no compressed model: make it by" in done.stderr) == (2, True)
    assert not server.files
