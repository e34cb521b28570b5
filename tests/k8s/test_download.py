"""The init container's own command, run against a small hub on this machine: it brings the weights, of that commit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.k8s.charts import Manifest, manifests, pod, values

TOKEN = "hf_of_the_test"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 40, "sub/notes.txt": b"x"}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download asks for: one repository at one commit, for who has the token."""

    asked: list[str]
    repository: str
    revision: str

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        resolve = f"/{self.repository}/resolve/{self.revision}/"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, b"{}", body)
        elif path == f"/api/models/{self.repository}/revision/{self.revision}":
            siblings = [{"rfilename": name} for name in FILES]
            about = {"id": self.repository, "modelId": self.repository, "sha": self.revision, "siblings": siblings}
            self.send(200, json.dumps({**about, "private": False}).encode(), body)
        elif path == f"/api/models/{self.repository}/tree/{self.revision}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self.send(200, json.dumps(tree).encode(), body)
        elif path.startswith(resolve) and path.removeprefix(resolve) in FILES:
            data = FILES[path.removeprefix(resolve)]
            etag = hashlib.sha256(data).hexdigest()
            self.send(200, data, body, {"ETag": f'"{etag}"', "X-Repo-Commit": self.revision})
        else:
            self.send(404, b"{}", body)

    def send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def init() -> Manifest:
    (found,) = pod(manifests(values("keda")))["initContainers"]
    return dict(found)


@pytest.fixture
def hub(init: Manifest) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it was asked for."""
    repository, revision, _ = init["args"]
    asked: list[str] = []
    members = {"asked": asked, "repository": repository, "revision": revision.removeprefix("--revision=")}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), members))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def run(init: Manifest, models: Path, hub: str, token: str) -> subprocess.CompletedProcess[str]:
    """The container's command, with its environment, where /models is ``models``."""
    environment = {entry["name"]: entry["value"] for entry in init["env"] if "value" in entry}
    secrets = {entry["name"] for entry in init["env"] if "valueFrom" in entry}
    assert secrets == {"HF_TOKEN"}
    program = str(Path(sys.executable).parent / init["command"][0])
    arguments = [argument.replace("/models", str(models)) for argument in init["args"]]
    environment |= {"HOME": str(models.parent), "HF_TOKEN": token, "HF_ENDPOINT": hub, "PATH": "/usr/bin:/bin"}
    command = [program, *init["command"][1:], *arguments]
    return subprocess.run(command, env=environment, timeout=90, check=False, capture_output=True, text=True)


def test_the_weights_are_there_and_are_those_of_the_commit(
    init: Manifest, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = hub
    models = tmp_path / "models"
    done = run(init, models, address, TOKEN)
    assert done.returncode == 0, done.stderr
    for name, data in FILES.items():
        assert (models / "llama-3.2-1b" / name).read_bytes() == data
    asked.clear()
    again = run(init, models, address, TOKEN)
    assert again.returncode == 0
    assert not [path for path in asked if path.endswith("model.safetensors")], "what is there is not fetched again"


def test_without_the_right_token_the_pod_does_not_start(
    init: Manifest, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    done = run(init, tmp_path / "models", hub[0], "hf_another")
    assert done.returncode != 0
    assert "401" in done.stderr
