"""Ready means that a media question would be answered: not with a stage stopped or dead, and not after SIGTERM."""

import os
import signal
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from conftest import MEDIA
from service.servers import alive, serving, start
from videollama_client import VideoLlamaError

VARIANT = "qwen2-clip-8f"
SOON = 10.0  # seconds; it takes at most one


@pytest.fixture(scope="module")
def server(bundle_of, tmp_path_factory):
    with serving(bundle_of(VARIANT), tmp_path_factory.mktemp("readiness") / "log") as running:
        yield running


def said(server) -> dict[str, bool]:
    """What each readiness check reports."""
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        replies = {
            "ServerReady": stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5).ready,
            "ModelReady": stub.ModelReady(service_pb2.ModelReadyRequest(name="videollama2"), timeout=5).ready,
            "Health": channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5) == b"\x08\x01",
        }
    with server.client() as client:
        replies["client"] = client.health()
    try:
        with urllib.request.urlopen(server.metrics.replace("/metrics", "/v2/health/ready"), timeout=5) as response:
            replies["HTTP"] = response.status == 200
    except urllib.error.HTTPError as error:
        replies["HTTP"] = error.code != 503
    return replies


def wait_until(server, ready: bool) -> None:
    deadline = time.monotonic() + SOON
    while set(said(server).values()) != {ready}:
        assert time.monotonic() < deadline, said(server)
        time.sleep(0.1)


@pytest.mark.parametrize("stage", ["videollama2", "preprocess", "encoder", "tensorrt_llm"])
def test_a_stopped_stage_is_not_ready(stage, server):
    wait_until(server, ready=True)
    pid = server.pids(stage)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(server, ready=False)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(server, ready=True)
    with server.client() as client:
        assert client.ask("What?", image=MEDIA / "image_90x50.png", max_new_tokens=2).usage.completion_tokens == 2


def test_a_stopped_triton_is_not_ready(server):
    os.kill(server.triton, signal.SIGSTOP)
    try:
        wait_until(server, ready=False)
    finally:
        os.kill(server.triton, signal.SIGCONT)
    wait_until(server, ready=True)


def test_readiness_checks_are_not_counted_as_requests(server):
    """A second of readiness checks changes no counter of requests."""
    wait_until(server, ready=True)
    before = server.metric("nv_inference_request_success") + server.metric("nv_inference_request_failure")
    time.sleep(2.5)
    said(server)
    assert server.metric("nv_inference_request_success") + server.metric("nv_inference_request_failure") == before


def test_the_endpoint_is_restarted_on_its_port(server):
    for name in ("first", "second"):
        (pid,) = [
            int(pid)
            for pid in os.listdir("/proc")
            if pid.isdigit() and is_endpoint(pid) and parent(pid) == server.process.pid
        ]
        os.kill(pid, signal.SIGKILL if name == "first" else signal.SIGSTOP)  # a silent one is ended
        deadline = time.monotonic() + 30
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        with server.client() as client:
            client.wait_until_ready(30)
            assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2


def is_endpoint(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"videollama_server.endpoint" in file.read()
    except OSError:
        return False


def parent(pid: str) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_a_draining_server_is_not_ready_but_still_answers_during_its_delay(endless, tmp_path):
    """Answers of the entry and of `ensemble` that run at SIGTERM finish; a question during the delay is answered."""
    server = start(endless, tmp_path / "log", "--drain-delay-seconds", 3, "--expose-ensemble")
    whole: list[object] = []

    def ask_ensemble() -> None:
        image = np.array([(MEDIA / "image_90x50.png").read_bytes()], np.object_)
        asked = {"question": np.array([b"What?"], np.object_), "media": image}
        asked |= {"media_kind": np.array([b"image"], np.object_), "max_new_tokens": np.array([1500], np.int32)}
        whole.append(server.call("ensemble", ["text"], **asked)["text"])

    try:
        with server.client() as client:
            stream = client.stream("Tell a long story", max_new_tokens=2000)
            pieces = iter(stream)
            next(pieces)
            thread = threading.Thread(target=ask_ensemble)
            thread.start()
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            stopped = time.monotonic()
            deadline = stopped + 2
            while any(said(server).values()) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(said(server).values()) and time.monotonic() - stopped < 3
            assert client.ask("In the delay?", max_new_tokens=1).usage.completion_tokens == 1
            for _ in pieces:
                pass
            assert stream.answer.usage.completion_tokens == 2000
            thread.join(60)
            assert len(whole) == 1
            with pytest.raises(VideoLlamaError):
                time.sleep(max(0.0, stopped + 3.5 - time.monotonic()))
                client.ask("Too late?", max_new_tokens=1, timeout=2)
        server.process.communicate(timeout=60)
        assert server.process.returncode == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
