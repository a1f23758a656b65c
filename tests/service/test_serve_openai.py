"""`vl2 serve --openai`: a gateway that is restarted when it dies, and ends with its server."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx2
import pytest

from conftest import MEDIA
from service.servers import alive, children, start, stop, vl2
from videollama_core.protocol.errors import InvalidRequest, ServerFailed
from videollama_server.gateway_process import GatewayAddress, GatewayProcess, read_openai
from videollama_server.ports import bracketed

OPEN = SimpleNamespace(tls_cert=None, api_keys=None)


def answers(url: str) -> bool:
    body = {"model": "videollama2", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 3}
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            response = httpx2.post(f"{url}/chat/completions", json=body, timeout=20)
            if response.status_code == 200:
                return bool(response.json()["usage"]["completion_tokens"])
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    return False


def loopback() -> str:
    """IPv6's address where the machine has it."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return "::1"
    except OSError:
        return "127.0.0.1"


def test_a_gateway_beside_the_server(bundle_of, tmp_path):
    """Both also on IPv6, which the server refused to listen on."""
    host = bracketed(loopback())
    options = ("--host", loopback(), "--http-port", 0, "--openai", f"{host}:0", "--examples", MEDIA)
    server = start(bundle_of("qwen2-clip-8f"), tmp_path / "log", *options)
    try:
        assert all(
            address.startswith(prefix) for address, prefix in ((server.grpc, host), (server.openai, f"http://{host}"))
        )
        with server.client() as client:
            assert client.ask("Who?", max_new_tokens=1).usage.completion_tokens == 1
        assert httpx2.get(server.http).status_code == 200
        assert answers(server.openai)
        assert "1034346401.mp4" in httpx2.get(f"{server.openai.removesuffix('/v1')}/examples").json()
        (gateway,) = children(server.process.pid, "videollama_client gateway")
        os.kill(gateway, signal.SIGKILL)
        assert answers(server.openai)
        (gateway,) = children(server.process.pid, "videollama_client gateway")
    finally:
        assert stop(server) == 0
    assert not alive(gateway)


def test_a_gateway_ends_with_a_server_that_is_killed():
    script = (
        "import os, signal\n"
        "from videollama_server.gateway_process import GatewayAddress, GatewayProcess\n"
        "made = GatewayProcess(GatewayAddress('127.0.0.1', 0), '127.0.0.1:1')\n"
        "print(made.start(), made._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    url, pid = done.stdout.split()
    assert done.returncode == -signal.SIGKILL and url.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 40
    while alive(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_ends_by_a_signal_sent_as_it_starts(number, tmp_path):
    """The signal arrives before uvicorn, slowed down for this test, handles signals."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time, uvicorn\n"
        "capture = uvicorn.Server.capture_signals\n"
        "uvicorn.Server.capture_signals = lambda server: time.sleep(1) or capture(server)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = vl2("gateway", "--server", "127.0.0.1:1", "--port", 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert "/v1" in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_the_values_of_openai():
    assert read_openai(None, OPEN) is None
    assert read_openai("0", OPEN) == GatewayAddress("127.0.0.1", 0)
    assert read_openai("0.0.0.0:0", OPEN) == GatewayAddress("0.0.0.0", 0)
    assert read_openai("[::1]:8080", OPEN) == GatewayAddress("::1", 8080)
    assert read_openai("0", OPEN, MEDIA) == GatewayAddress("127.0.0.1", 0, MEDIA)
    with pytest.raises(InvalidRequest, match="--examples came without --openai"):
        read_openai(None, OPEN, MEDIA)
    for wrong in ("", "x", ":80", "host:", "70000"):
        with pytest.raises(InvalidRequest):
            read_openai(wrong, OPEN)
    with pytest.raises(InvalidRequest, match="asks for no key"):
        read_openai("0", SimpleNamespace(tls_cert=None, api_keys="keys"))
    with pytest.raises(ServerFailed):
        read_openai("192.0.2.1:80", OPEN)  # no address of this machine


def test_a_gateway_that_cannot_be_started_is_reported_and_not_waited_for(monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError("no memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ServerFailed, match="did not start"):
        GatewayProcess(GatewayAddress("127.0.0.1", 0), "127.0.0.1:1").start()
    assert "no memory" in caplog.text
