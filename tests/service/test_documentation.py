"""The commands and programs of the documentation run as a reader types them: every block that is not excused in `documented`."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import hub_server
import otlp_collector
from conftest import AUDIO_VARIANT, MEDIA, ROOT, checkpoint
from documented import blocks, form, reason, to_run
from made_certificates import Authority
from service.servers import gateway_of

# Every kind of media is asked about; what is called a folder here is a golden checkpoint of the same family.
FOLDERS = {"VideoLLaMA2.1-7B-16F": "qwen2-siglip-16f", "VideoLLaMA2-8x7B": "mixtral-clip-8f"}
FILES = {
    "clip.mp4": MEDIA / "alac16k_96x64.mp4",
    "photo.png": MEDIA / "image_90x50.png",
    "sound.wav": MEDIA / "tone_16k_mono_4s.wav",
}
# What makes a command short, appended to it.
SHORTER = {
    "bench": "--seconds 0.3 --warmup 0 --max-new-tokens 4",
}
ASKS = ("ask", "chat", "health", "bench", "eval")


class Reader:
    """Runs the commands of one block in a folder that holds the files they name.

    A server that a block starts answers the rest of the block; else the tests' own does.
    """

    def __init__(self, folder: Path, server, gateway: str, hub, collector: str, bundle: Path) -> None:
        self.folder, self.hub = folder, hub
        self.grpc, self.http, self.openai, self.collector = server.grpc, server.http, gateway, collector
        self.bundle = bundle
        self._running = ExitStack()
        for name, path in FILES.items():
            shutil.copy(path, folder / name)
        program = folder / "bin" / "vl2"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m videollama_client "$@"\n')
        program.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._running.close()

    def here(self, text: str) -> str:
        """A command or program with the addresses, folders and ports of this run."""
        text = text.replace("localhost:8001", self.grpc.replace("127.0.0.1", "localhost"))
        text = re.sub(r"dns:[\w.]+:8001", f"dns:{self.grpc}", text)
        text = text.replace("localhost:8080", self.openai).replace("http://localhost:4318", self.collector)
        text = re.sub(r"http://localhost:8000", self.http.partition("/v2")[0], text)
        text = re.sub(r"--(http-port|openai) \d+", r"--\1 0", text)
        text = text.replace("--host 0.0.0.0", "--host 127.0.0.1").replace("/data/MVBench", "MVBench")
        text = re.sub(r"(?<![\w/])(training|benchmarks|examples|deploy)/(?=\w)", rf"{ROOT}/\1/", text)
        for name, variant in FOLDERS.items():
            text = re.sub(rf"(?<![\w/-]){re.escape(name)}(?![\w.-])", str(checkpoint(variant)), text)
        return text

    def type(self, command: str) -> None:
        name = shlex.split(command)[1] if command.startswith("vl2") else shlex.split(command)[0]
        text = self.here(command.rstrip("& "))
        if name in ("serve", "gateway"):
            return self._start(name, text)
        if name in ASKS or "| vl2 chat" in command:
            text += "" if "--url" in text else f" --url {self.grpc}"
        if name == "doctor":
            text += f" --port {free_port()}"
        if name == "make":  # in this tree, whose `make setup` was the first thing
            text = f"{text} -C {ROOT} -o setup"
        text = f"{text} {SHORTER.get(name, '')}"
        for _ in range(
            2
        ):  # once more where Triton 2.51 itself crashed on a busy machine (docs/log.md): it is started again
            done = subprocess.run(
                ["bash", "-c", text],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=200,
            )
            if "the connection ended" not in done.stderr:
                break
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        if name in ("ask", "echo", "curl", "health"):
            assert done.stdout.strip() and '"error"' not in done.stdout, text

    def run(self, program: str) -> str:
        (self.folder / "program.py").write_text(self.here(program))
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    def _start(self, name: str, text: str) -> None:
        text += " --grpc-port 0" if name == "serve" else " --port 0"
        if name == "gateway" and "--server" not in text:
            text += f" --url {self.grpc}"
        for word in shlex.split(text):  # what another block has converted
            if word.startswith("build/") and not (self.folder / word).exists():
                (self.folder / "build").mkdir(exist_ok=True)
                (self.folder / word).symlink_to(self.bundle)
        self._running.close()  # one server at a time, as on a small machine
        errors = (self.folder / f"{name}.err").open("w+")
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self._running.callback(_stop, process)
        self._running.callback(errors.close)
        announced: dict[str, str] = {}
        for line in process.stdout:
            announced |= {line.split()[0]: line.split()[-1]} if line.strip() else {}
            if line.startswith("ready") or name == "gateway":
                break
        else:
            raise AssertionError(f"{text}\n{(self.folder / f'{name}.err').read_text()}")
        if name == "serve":
            self.grpc, self.http = announced["gRPC"], announced.get("HTTP", self.http)
            self.openai = re.sub(r"http://|/v1", "", announced.get("OpenAI", self.openai))


def _stop(process: subprocess.Popen) -> None:
    with process:
        process.terminate()
        assert process.wait(60) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def server(server_of):
    return server_of(AUDIO_VARIANT)


@pytest.fixture(scope="module")
def gateway(server):
    with gateway_of("--server", server.grpc) as address:
        yield address


@pytest.fixture
def reader(server, gateway, hub, tmp_path, bundle_of):
    """In a folder with everything that the pages name."""
    with otlp_collector.collecting() as collector:
        published(hub)
        with Reader(tmp_path, server, gateway, hub, collector.http, bundle_of(AUDIO_VARIANT)) as reader:
            prepare(tmp_path, server)
            yield reader


def published(hub) -> None:
    """The golden checkpoint under the published checkpoints' names."""
    hub_server.publish(hub, hub_server.CHAT)
    hub.repositories["DAMO-NLP-SG/VideoLLaMA2.1-7B-16F"] = hub.repositories[hub_server.ID]


def prepare(folder: Path, server) -> None:
    certificate, key = Authority(folder, "ca").sign("server", ("127.0.0.1", "localhost"))
    assert (certificate.name, key.name) == ("server.pem", "server.key")
    for name in ("keys.txt", "key.txt"):
        (folder / name).write_text("a-key-of-this-test\n")
        (folder / name).chmod(0o600)
    (folder / "servers.txt").write_text(f"{server.grpc}\n")
    (folder / "my_clips").mkdir()
    shutil.copy(FILES["clip.mp4"], folder / "my_clips")
    entry = {"video": "a.mp4", "question": "Which way?", "candidates": ["Up.", "Left."], "answer": "Left."}
    videos, lists = folder / "MVBench/video/clevrer/video_validation", folder / "MVBench/json"
    for made in (videos, lists):
        made.mkdir(parents=True)
    (lists / "moving_direction.json").write_text(json.dumps([entry]))
    shutil.copy(FILES["clip.mp4"], videos / "a.mp4")


def test_every_block_is_run_or_excused():
    """A block that is not in `to_run` is part of another block, or excused."""
    done = {each for block in to_run() for each in block.forms}
    for block in blocks():
        if block.language in ("sh", "bash", "console"):
            for command in block.commands:
                assert form(command) in done or reason(command), f"{block.name}: {command}"


@pytest.mark.parametrize("block", to_run(), ids=lambda block: block.name)
def test_commands(block, reader):
    for command in block.commands:
        if reason(command) is None:
            reader.type(command)


@pytest.mark.parametrize(
    "block", [each for each in blocks() if each.language == "python"], ids=lambda block: block.name
)
def test_programs(block, reader):
    assert reader.run(block.text).strip() or "print" not in block.text
