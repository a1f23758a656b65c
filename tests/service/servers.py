"""Real servers for the tests: `vl2 serve` as a user starts it."""

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from videollama_client import Client
from videollama_core.protocol.contract import STAGES


def vl2(*words: object) -> list[str]:
    return [sys.executable, "-m", "videollama_client", *map(str, words)]


STARTED: list["Server"] = []  # and not stopped: a test that fails leaves its own, and the end of the run ends it


@dataclass(eq=False)
class Server:
    """A running `vl2 serve`."""

    process: subprocess.Popen
    grpc: str
    http: str
    metrics: str
    log: Path
    triton: int  # process id of the server itself
    openai: str = ""  # the gateway beside it, with --openai

    def client(self, **options) -> Client:
        return Client(self.grpc, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series with these labels."""
        with urllib.request.urlopen(self.metrics, timeout=10) as response:
            text = response.read().decode()
        total = 0.0
        for label_text, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
            if all(f'{key}="{wanted}"' in label_text for key, wanted in labels.items()):
                total += float(value)
        return total

    def settled(self, name: str) -> float:
        """A metric's value once it has stopped changing."""
        before = None
        while (now := self.metric(name)) != before:
            before = now
            time.sleep(0.5)
        return now

    def pids(self, stage: str) -> list[int]:
        """The processes of a stage of this server; the stage's own process may have been replaced."""
        return [
            pid
            for triton in children(self.process.pid, "tritonserver")
            for pid in children(triton, f"/{stage}/1/model.py")
        ]

    def call(self, model: str, outputs: list[str], **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One request to one stage with plain tritonclient; the first response, with all outputs requested."""
        tensors = []
        for name, value in inputs.items():
            tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        asked = [triton.InferRequestedOutput(name) for name in outputs]
        if not STAGES[model].decoupled:
            with triton.InferenceServerClient(self.grpc) as client:
                result = client.infer(model, tensors, outputs=asked)
            return {name: result.as_numpy(name) for name in outputs}
        results: list = []
        with triton.InferenceServerClient(self.grpc) as client:
            client.start_stream(lambda result, error: results.append((result, error)))
            client.async_stream_infer(model, tensors, outputs=asked)
            deadline = time.monotonic() + 60
            while not results and time.monotonic() < deadline:
                time.sleep(0.001)
            client.stop_stream()
        result, error = results[0]
        if error is not None:
            raise error
        return {name: result.as_numpy(name) for name in outputs}


def alive(pid: int) -> bool:
    """False also for a process that has ended but that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def children(parent: int, pattern: str) -> list[int]:
    result = subprocess.run(["pgrep", "-P", str(parent), "-f", pattern], capture_output=True, text=True)
    return [int(line) for line in result.stdout.split()]


def start(bundle: Path, log: Path, *options: object) -> Server:
    ports = ("--grpc-port", 0, "--http-port", 0)
    process = subprocess.Popen(
        vl2("serve", bundle, *ports, "--log", log, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    announced: dict[str, str] = {}
    for line in process.stdout:
        key, _, value = line.partition(" ")
        announced[key] = value.strip()
        if line.startswith("ready"):
            break
    else:
        raise AssertionError(f"the server did not start: {process.stderr.read()}")
    triton_pid = children(process.pid, "tritonserver")[0]
    addresses = announced["gRPC"], announced["HTTP"], announced["metrics"]
    server = Server(process, *addresses, log, triton_pid, announced.get("OpenAI", ""))
    STARTED.append(server)
    return server


def stop(server: Server) -> int:
    if server in STARTED:
        STARTED.remove(server)
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise
    return server.process.returncode


@contextmanager
def serving(bundle: Path, log: Path, *options: object):
    server = start(bundle, log, *options)
    try:
        yield server
    finally:
        stop(server)


@contextmanager
def gateway_of(*words: object, log=None):
    """The address (host:port) of a gateway in a process of its own; `log` is a file for its stderr."""
    command = vl2("gateway", "--port", 0, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            yield re.search(r"http://([\d.:]+)/v1", process.stdout.readline())[1]
        finally:
            process.terminate()
            assert process.wait(40) == 0


@contextmanager
def unchanged_neighbour(server: Server, question: str, **options):
    """A second caller during the block: each of its answers must equal the one it had alone."""
    with server.client() as client:
        alone, answers, ended = client.ask(question, **options).output_ids, [], threading.Event()

        def work() -> None:
            while not ended.wait(0.1):
                answers.append(client.ask(question, **options).output_ids)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(30)
    assert answers, "the neighbour was not answered"
    differs = [ids for ids in answers if ids != alone]
    assert not differs, f"{len(differs)} of {len(answers)} answers are not that alone: {differs[0]} for {alone}"
