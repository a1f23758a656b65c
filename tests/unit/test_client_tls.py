"""The client's TLS, certificates, API keys and proxies, against a gRPC server of the test's own."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from made_certificates import Authority
from videollama_client import AsyncClient, Client, InvalidRequest, NotAllowed, Overloaded, ServerUnreachable
from videollama_client.connection import is_loopback
from wire_messages import message

KEY = "a-key-of-the-tests"
SUMMARY = json.dumps(
    {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "media_tokens": 0, "completion_tokens": 1},
        "seconds": {"total": 0.1},
    }
)


class Entry(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers callers that send the API key, where one is required."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def _check(self, context) -> None:
        sent = dict(context.invocation_metadata()).get("authorization")
        if self._key and sent is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "NotAllowed: send a key")
        if self._key and sent == "Bearer slow-down":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "4 requests run with this key")
        if self._key and sent != f"Bearer {self._key}":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this key may not ask")

    def ModelReady(self, request, context):
        self._check(context)
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelStreamInfer(self, requests, context):
        self._check(context)
        next(requests)
        yield message(process="1")
        yield message(text="an answer", output_ids=[1], summary=SUMMARY)


@contextmanager
def serving(credentials: grpc.ServerCredentials | None = None, key: str | None = None):
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Entry(key), server)
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def credentials(authority):
    """Server credentials: (mutual) -> grpc.ServerCredentials."""
    certificate, key = (file.read_bytes() for file in authority.sign("server", ("127.0.0.1", "localhost")))
    root = authority.certificate.read_bytes()
    return lambda mutual: grpc.ssl_server_credentials([(key, certificate)], root if mutual else None, mutual)


def ask(address: str, **options) -> str:
    """The answer's text, checked to be equal from both clients."""

    async def ask_async() -> str:
        async with AsyncClient(address, **options) as client:
            return (await client.ask("What?", timeout=10)).text

    with Client(address, **options) as client:
        answer = client.ask("What?", timeout=10).text
    assert asyncio.run(ask_async()) == answer
    return answer


def vl2(*words, **environment) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "videollama_client", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ) | environment)


def test_mutual_tls_with_api_keys(authority, credentials):
    certificate, key = authority.sign("caller")
    with serving(credentials(True), KEY) as address:
        mutual = {"root_certificates": authority.certificate, "certificate": certificate, "key": key.read_bytes()}
        assert ask(address, api_key=KEY, **mutual) == "an answer"
        with pytest.raises(NotAllowed, match="send a key"):
            ask(address, **mutual)
        with pytest.raises(NotAllowed, match="this key may not ask"):
            ask(address, api_key="another", **mutual)
        with pytest.raises(Overloaded, match="4 requests run"):
            ask(address, api_key="slow-down", **mutual)
        for options in (
            {"root_certificates": authority.certificate},
            {"tls": True},
            {},
        ):  # no certificate; none trusted
            with pytest.raises(ServerUnreachable):
                ask(address, api_key=KEY, **options)


def test_a_certificate_must_be_trusted_and_name_the_host(authority, tmp_path):
    other = Authority(tmp_path, "other")
    for signer, hosts, days, good in (
        (authority, ("127.0.0.1",), 1, True),
        (authority, ("example.org",), 1, False),
        (authority, ("127.0.0.1",), -1, False),
        (other, ("127.0.0.1",), 1, False),
    ):
        certificate, key = (file.read_bytes() for file in signer.sign("once", hosts, days))
        with serving(grpc.ssl_server_credentials([(key, certificate)])) as address:
            if good:
                assert ask(address, root_certificates=authority.certificate) == "an answer"
            else:
                with pytest.raises(ServerUnreachable):
                    ask(address, root_certificates=authority.certificate)


def test_the_command_line_asks_with_tls_and_a_key(authority, credentials, tmp_path):
    certificate, key = authority.sign("caller")
    secret = tmp_path / "api-key"
    secret.write_text(KEY + "\n")
    with serving(credentials(True), KEY) as address:
        tls = ("--url", address, "--ca", authority.certificate, "--cert", certificate, "--key", key)
        result = vl2("ask", "What?", *tls, "--api-key-file", secret)
        assert (result.returncode, result.stdout) == (0, "an answer\n"), result.stderr
        assert vl2("health", *tls, VL2_API_KEY=KEY).returncode == 0
        for command in (("ask", "What?"), ("health",)):
            refused = vl2(*command, *tls, VL2_API_KEY="another-key")
            assert refused.returncode == 2 and "NotAllowed" in refused.stderr and "another-key" not in refused.stderr
        secret.write_text("two words")
        result = vl2("ask", "What?", *tls, "--api-key-file", secret)
        assert result.returncode == 2 and "wanted one" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "line\nbreak"}, {"api_key": "a b"}, {"api_key": ""}, {"api_key": "schlüssel"}, {"api_key": 7},
        {"certificate": b"-----BEGIN CERTIFICATE-----"}, {"key": b"-----BEGIN KEY-----"},
        {"root_certificates": "missing.pem"}, {"root_certificates": b"secret words"}, {"root_certificates": 7},
        {"root_certificates": "/dev/zero"}, {"root_certificates": "nul\0"}, {"tls": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_connection_options_are_refused_without_printing_keys(options):
    with pytest.raises(InvalidRequest) as error:
        Client("127.0.0.1:9", **options)
    assert "secret words" not in str(error.value) and "line" not in str(error.value)


def test_invalid_certificates_are_refused():
    with pytest.raises((InvalidRequest, ServerUnreachable)):
        ask("127.0.0.1:9", root_certificates=b"-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_no_proxy_is_used_for_the_local_machine(variable):
    with serving() as address:
        result = vl2("ask", "What?", "--url", address, "--timeout", 10, **{variable: "http://127.0.0.1:9"})
        assert (result.returncode, result.stdout) == (0, "an answer\n"), result.stderr


def test_a_proxy_is_used_only_when_grpc_is_configured_for_it():
    from videollama_client.connection import Connection

    def uses_proxy(address: str) -> int:
        return dict(Connection(address).channel_options)["grpc.enable_http_proxy"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        assert not uses_proxy("example.org:8001")
        patch.setenv("grpc_proxy", "http://127.0.0.1:9")
        assert uses_proxy("example.org:8001") and not uses_proxy("localhost:8001")
    assert all(map(is_loopback, ("127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "LOCALHOST.:1", "a.localhost:1")))
    assert not any(map(is_loopback, ("10.0.0.1:1", "localhost.example.org:1", "[::2]:1")))
