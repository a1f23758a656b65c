"""Hostile HTTP and HTTP/2 at the two ports that face the network: answered with an error, and no process ends."""

import os
import socket
import time
import urllib.request

import pytest

AREA = "http"
pytestmark = pytest.mark.usefixtures("still_answers")


@pytest.fixture
def server(default_server):
    return default_server


def say(address: str, data: bytes, piece: int = 0, seconds: float = 8.0) -> bytes:
    """The server's answer to bytes sent in pieces, until it closes the connection."""
    host, _, port = address.rpartition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        try:
            for begin in range(0, len(data), piece or len(data)):
                connection.sendall(data[begin : begin + (piece or len(data))])
            while part := connection.recv(65536):
                answer += part
        except (ConnectionError, TimeoutError):
            pass
    return answer


def http_of(server) -> str:
    return server.metrics.split("/")[2]


def test_health_and_metrics_can_be_read(server):
    base = f"http://{http_of(server)}"
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
        with urllib.request.urlopen(base + path, timeout=10) as response:
            assert response.status == 200
    deadline = time.monotonic() + 20
    while server.metric("vl2_running_requests", model="videollama2"):  # what other tests left may be ending still
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "path",
    ["/v2/logging", "/v2/trace/setting", "/v2/models/videollama2/infer", "/v2/models/videollama2/generate_stream"],
)
def test_one_byte_chunks_crash_nothing(path, server, case_table):
    """One such request ends Triton 2.51 with signal 11 (CVE-2025-23310)."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    began = time.monotonic()
    answer = say(http_of(server), head + b"1\r\nx\r\n" * 600_000)
    case_table.add(f"HTTP: POST {path} in 1-byte chunks", "404", time.monotonic() - began)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 404")  # b"": the connection was reset while it sent


HTTP = {
    "GET /v2": (b"GET /v2 HTTP/1.1\r\n\r\n", b"404"),
    "GET /v2/repository/index": (b"GET /v2/repository/index HTTP/1.1\r\n\r\n", b"404"),
    "POST /metrics": (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"405"),
    "GET /metrics/../v2/logging": (b"GET /metrics/../v2/logging HTTP/1.1\r\n\r\n", b"404"),
    "no HTTP": (b"\0\1\2\3\r\n\r\n", b"400"),
    "HTTP/2 at the HTTP port": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    "a header of 100 kB": (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"400"),
    "a head without an end": (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b""),
}


@pytest.mark.parametrize("case", HTTP)
def test_hostile_http(case, server, case_table):
    data, wanted = HTTP[case]
    began = time.monotonic()
    answer = say(http_of(server), data)
    seconds = time.monotonic() - began
    status = answer.split(b" ")[1] if answer else b""
    assert status == wanted or (len(data) > 65536 and not answer)
    case_table.add(f"HTTP: {case}", wanted.decode() or "the connection is ended", seconds)
    assert seconds < 8


HTTP2 = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": os.urandom(4096),
    "preface and noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
    "a frame of 16 MB": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\xff\xff\xff\0\0\0\0\0\1",
    "100,000 settings": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 100_000,
    "20,000 streams reset at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + b"\0\0\0\4\0\0\0\0\0"
    + b"".join(
        b"\0\0\0\1\4" + n.to_bytes(4, "big") + b"\0\0\4\3\0" + n.to_bytes(4, "big") + b"\0\0\0\x08"
        for n in range(1, 40_000, 2)
    ),
}


@pytest.mark.parametrize("case", HTTP2)
def test_malformed_http2(case, server, case_table):
    began = time.monotonic()
    say(server.grpc, HTTP2[case], seconds=2.0)
    seconds = time.monotonic() - began
    answer = "the connection is ended" if seconds < 2 else "the connection stays, and nobody else notices"
    case_table.add(f"gRPC port: {case}", answer, seconds)


def test_idle_connections_block_nobody(server):
    host, _, port = server.grpc.rpartition(":")
    held = [socket.create_connection((host, int(port))) for _ in range(300)]
    with server.client() as client:
        assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
    for connection in held:
        connection.close()
