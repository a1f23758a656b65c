"""A file server on this machine that speaks the protocol of the Hugging Face hub, as far as downloads need it.

Metadata at /api/models/ID[/revision/REV]; files at /ID/resolve/REV/FILE with ETag and X-Repo-Commit. Large files are
redirected, as there, to another host (localhost instead of 127.0.0.1), which answers range requests and sees no token.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import GOLDEN, checkpoint
from preloaded import vl2

ID = "DAMO-NLP-SG/Tiny"
TOWER, BASE = "towers/clip-vit-tiny-patch14-56", "base/mistral-tiny-instruct"  # as the golden configs name them
CHAT, BASE_VARIANT, LORA, AUDIO = "mistral-clip-16f", "mistral-clip-8f-base", "mistral-clip-8f-lora", "av-qwen2-siglip"
LARGE = (".safetensors", ".bin", ".h5", ".model")


@dataclass
class Repository:
    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None  # status and X-Error-Code of every answer

    @property
    def commit(self) -> str:
        return hashlib.sha1(json.dumps({k: digest(v) for k, v in sorted(self.files.items())}).encode()).hexdigest()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  # beside main: tag -> repository
    requests: list[dict] = field(default_factory=list)  # method, path, range, token
    spoiled: set[str] = field(default_factory=set)  # hashes of files that arrive damaged
    # Hashes of files whose first answer ends after so many bytes: the connection is closed, or stays open until `go_on`.
    cut: dict[str, int] = field(default_factory=dict)
    hold: dict[str, int] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    other_host: str = ""

    def add(self, name: str, folder: Path, **more: bytes) -> Repository:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repositories[name] = Repository(files | {key.replace("__", "."): data for key, data in more.items()})
        return self.repositories[name]

    def fetched(self, since: int = 0) -> list[str]:
        """Names of the files whose content was sent."""
        paths = [request["path"] for request in self.requests[since:] if request["method"] == "GET"]
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in paths if "/resolve/" in path]

    def ranges(self) -> list[str]:
        return [request["range"] for request in self.requests if request["range"] and "/cdn/" in request["path"]]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        record = {"method": self.command, "path": path, "range": self.headers.get("Range")}
        self.hub.requests.append(record | {"token": self.headers.get("Authorization"), "host": self.headers["Host"]})
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            return self.send_large(match[1])
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path)
        match = match or re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        if repository.refusal is not None and "/api/" not in path:
            return self.refuse(*repository.refusal)
        if match[2] not in (None, "main", repository.commit) and self.hub.tags.get(match[2]) != match[1]:
            return self.refuse(404, "RevisionNotFound")
        if path.startswith("/api/"):
            return self.send_metadata(match[1], repository)
        if match[3] not in repository.files:
            return self.refuse(404, "EntryNotFound", repository.commit)
        data = repository.files[match[3]]
        if not match[3].endswith(LARGE):
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return self.send(200, data if send_body else b"", {"ETag": f'"{blob}"', "Content-Length": str(len(data)), "X-Repo-Commit": repository.commit})  # fmt: skip
        headers = {"X-Linked-Etag": f'"{digest(data)}"', "X-Linked-Size": str(len(data))}
        headers |= {"X-Repo-Commit": repository.commit, "Location": f"{self.hub.other_host}/cdn/{digest(data)}"}
        self.send(302, b"", headers | {"Content-Length": "0"})

    def send_metadata(self, name: str, repository: Repository) -> None:
        siblings = []
        for file, data in repository.files.items():
            entry: dict = {"rfilename": file, "size": len(data), "blobId": "0" * 40}
            if file.endswith(LARGE):
                entry["lfs"] = {"size": len(data), "sha256": digest(data), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": name, "sha": repository.commit, "siblings": siblings, "tags": []}).encode()
        self.send(200, body, {"Content-Type": "application/json", "Content-Length": str(len(body))})

    def send_large(self, name: str) -> None:
        data = next(d for r in self.hub.repositories.values() for d in r.files.values() if digest(d) == name)
        if name in self.hub.spoiled:
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers["Range"] else 0
        body = data[begin:]
        headers = {"Content-Length": str(len(body)), "ETag": f'"{name}"'}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        short = self.hub.cut.pop(name, None)
        if (held := self.hub.hold.pop(name, None)) is not None:
            self.send(206 if begin else 200, body[:held], headers)
            self.wfile.flush()
            self.hub.held.set()
            self.hub.go_on.wait(60)
            self.close_connection = True
            return
        self.send(206 if begin else 200, body[:short], headers)
        self.close_connection = short is not None

    def refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Repo-Commit": commit, "Content-Length": "0"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        hub.other_host = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # its end waits so long
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            server.shutdown()


def publish(hub: Hub, variant: str, **more: bytes) -> Repository:
    """A golden variant under ID, with the tower and base model that it names."""
    for folder in [*(GOLDEN / variant).glob("towers/*"), *(GOLDEN / variant).glob("base/*")]:
        hub.add(f"{folder.parent.name}/{folder.name}", folder, README__md=b"# a model card")
    return hub.add(ID, checkpoint(variant), README__md=b"# a model card", **more)


def _command(hub: Hub, folder: Path, *words: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Words of a conversion by this hub, and its environment."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_secret"}
    return ["convert", *words, "--out", str(folder / "out")], os.environ | settings | environment


def start_convert(hub: Hub, folder: Path, *words: str, **environment: str) -> subprocess.Popen:
    command, settings = _command(hub, folder, *words, **environment)
    command = [sys.executable, "-m", "videollama_client", *command]
    return subprocess.Popen(
        command, env=settings, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_convert(hub: Hub, folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    command, settings = _command(hub, folder, *words, **environment)
    done = vl2(*command, cwd=folder, env=settings)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr
