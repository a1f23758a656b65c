"""Access control: TLS, mutual TLS and API keys, each valid and invalid, at endpoints in front of one real Triton."""

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from conftest import MEDIA
from made_certificates import Authority
from security.test_confinement import children
from service.servers import serving
from videollama_client import Client, NotAllowed, Overloaded, ServerUnreachable
from videollama_core.protocol.errors import InvalidRequest
from videollama_server.endpoint.access import Access
from videollama_server.endpoint.api_keys import read_keys
from videollama_server.endpoint.config import EndpointConfig
from videollama_server.endpoint.process import EndpointProcess
from videollama_server.endpoint.state import SupervisorStatus
from videollama_server.readiness import EndpointKeeper
from videollama_server.sandbox import confinement

AREA = "callers"
GOOD, OTHER, SLOW, SINGLE = (
    "good-key-0123456789",
    "other-key-0123456789",
    "slow-key-0123456789",
    "single-key-0123456789",
)


@pytest.fixture(scope="module")
def server(endless, tmp_path_factory):
    with serving(endless, tmp_path_factory.mktemp("callers") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def triton(server):
    """gRPC target and metrics of the server's Triton."""
    words = Path(f"/proc/{server.triton}/cmdline").read_bytes().decode().split("\0")
    (folder,) = (Path(word.partition("unix:")[2]).parent for word in words if word.startswith("--grpc-address="))
    return f"unix:{folder / 'grpc:1'}", str(folder / "metrics")


@pytest.fixture
def endpoint(triton, tmp_path):
    """Starts endpoints in front of that Triton; returns their address and the process."""
    opened = []

    def begin(**access: object) -> tuple[str, EndpointProcess]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = EndpointConfig(address, "", *triton, ("videollama2",), access=Access(**access))
        process = EndpointProcess(config, tmp_path, tmp_path / "endpoint.log")
        keeper = EndpointKeeper(process, lambda: SupervisorStatus(""))
        keeper.start()
        opened.append(keeper)
        return address, process

    yield begin
    for keeper in opened:
        keeper.close()


@contextmanager
def refused(kind, case_table, case, answer):
    began = time.monotonic()
    with pytest.raises(kind):
        yield
    case_table.add(case, answer, time.monotonic() - began)


def answers(client) -> bool:
    return client.ask("Who?", max_new_tokens=2, timeout=30).usage.completion_tokens == 2


# --- TLS ---


def test_tls(endpoint, tmp_path, case_table):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    certificate, key = authority.sign("server", ("127.0.0.1",))
    address, _ = endpoint(tls_cert=str(certificate), tls_key=str(key))
    with Client(address, root_certificates=authority.certificate) as client:
        assert answers(client)
    with Client(address) as plain, refused(ServerUnreachable, case_table, "no TLS to a port of TLS", "no connection"):
        plain.ask("Who?", timeout=5)
    with Client(address, root_certificates=stranger.certificate) as wary:
        with refused(ServerUnreachable, case_table, "certificate of an unknown authority", "the client refuses"):
            wary.ask("Who?", timeout=5)


def test_mutual_tls(endpoint, tmp_path, case_table):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    certificate, key = authority.sign("server", ("127.0.0.1",))
    own, own_key = authority.sign("caller")
    strange, strange_key = stranger.sign("impostor")
    address, _ = endpoint(tls_cert=str(certificate), tls_key=str(key), tls_client_ca=str(authority.certificate))
    trusted = {"root_certificates": authority.certificate}
    with Client(address, certificate=own, key=own_key, **trusted) as client:
        assert answers(client)
    with Client(address, **trusted) as client:
        with refused(ServerUnreachable, case_table, "mutual TLS: no certificate", "no connection"):
            client.ask("Who?", timeout=5)
    with Client(address, certificate=strange, key=strange_key, **trusted) as client:
        with refused(ServerUnreachable, case_table, "mutual TLS: certificate of another authority", "no connection"):
            client.ask("Who?", timeout=5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tls_cert": "x"}, "--tls-key"),
        ({"tls_client_ca": "x"}, "--tls-cert"),
        ({"key_concurrent": 3}, "--api-keys"),
        ({"api_keys": "/nowhere"}, "cannot be read"),
    ],
)
def test_incompatible_options_are_refused(options, word):
    with pytest.raises(InvalidRequest, match=word):
        Access(**options)


def test_listening_to_the_network_without_either_gives_a_warning(tmp_path):
    (tmp_path / "keys").write_text(GOOD)
    (tmp_path / "keys").chmod(0o600)
    keys = {"api_keys": str(tmp_path / "keys")}
    assert "everyone" in Access().warnings("0.0.0.0")[0]
    assert "unencrypted" in Access(**keys).warnings("0.0.0.0")[0]
    assert Access().warnings("127.0.0.1") == Access(**keys).warnings("localhost") == []
    (tmp_path / "keys").chmod(0o644)
    assert "chmod 600" in Access(**keys).warnings("127.0.0.1")[0]


# --- API keys ---


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(
        f"# name and limits may follow\n{GOOD} alice\n{SLOW} bob per_minute=2\n{SINGLE} concurrent=1 # one\n"
    )
    return path


def test_api_keys(endpoint, keys, case_table):
    address, _ = endpoint(api_keys=str(keys))
    with Client(address, api_key=GOOD) as client:
        assert answers(client)
        client.wait_until_ready(5)
    for case, key in {"no API key": None, "wrong API key": GOOD[:-1] + "x", "API key of 10 kB": "k" * 10_000}.items():
        with Client(address, api_key=key) as client:
            with refused(NotAllowed, case_table, case, "NotAllowed, UNAUTHENTICATED"):
                client.ask("Who?", timeout=5)
            with pytest.raises(NotAllowed):
                client.wait_until_ready(5)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        for header in (f"Basic {GOOD}", GOOD, "Bearer", "Bearer ", f"Bearer {GOOD} x"):
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", metadata=(("authorization", header),), timeout=5)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5) == b"\x08\x01"  # of probes


def test_rate_and_concurrency_limits_of_a_key(endpoint, keys, case_table):
    address, process = endpoint(api_keys=str(keys))
    with Client(address, api_key=SLOW) as slow:
        assert answers(slow) and answers(slow)
        with refused(Overloaded, case_table, "third request in a minute of two", "Overloaded, RESOURCE_EXHAUSTED"):
            slow.ask("Who?", timeout=5)
        slow.wait_until_ready(5)  # is no request
    with Client(address, api_key=SINGLE) as single:
        stream = single.stream("Tell a long story", max_new_tokens=20000)
        pieces = iter(stream)
        next(pieces)
        with refused(Overloaded, case_table, "second request at a time of one", "Overloaded, RESOURCE_EXHAUSTED"):
            single.ask("Who?", timeout=5)
        with Client(address, api_key=GOOD) as other:
            assert answers(other)
        stream.cancel()
        deadline = time.monotonic() + 10
        while process.exchange(SupervisorStatus("")).pending and time.monotonic() < deadline:
            time.sleep(0.05)
        assert answers(single)


@pytest.fixture
def decoding(server):
    """Returns the processes that have decoded something and wait for more of the same key's media."""

    def found() -> set[int]:
        spawners = [spawner for stage in server.pids("preprocess") for spawner in children(stage)]
        return {pid for spawner in spawners for pid in children(spawner) if confinement.processor_seconds(pid) > 0.03}

    return found


def ask_about_a_video(address: str, number: int, key: str | None = None) -> None:
    with Client(address, api_key=key) as client:
        video = {"video": MEDIA / "sample_demo_1.mp4", "start": 0.01 * number}
        client.ask("What?", **video, max_new_tokens=1, timeout=30)


def test_keys_never_share_a_decoding_process(endpoint, keys, decoding):
    address, _ = endpoint(api_keys=str(keys))
    seen: dict[str, set[int]] = {GOOD: set(), SINGLE: set()}
    for turn, key in enumerate((GOOD, SINGLE) * 6, 1):
        before = decoding()
        ask_about_a_video(address, turn, key)
        seen[key] |= decoding() - before
    assert seen[GOOD] and seen[SINGLE] and not seen[GOOD] & seen[SINGLE]


def test_every_medium_can_be_isolated(endpoint, decoding):
    deadline = time.monotonic() + 20
    while decoding():  # those of another test end soon
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for isolated, number in ((True, 20), (False, 21)):
        address, _ = endpoint(isolate_media=isolated)
        ask_about_a_video(address, number)
        assert bool(decoding()) != isolated


def test_keys_are_reloaded(endpoint, keys, tmp_path):
    address, _ = endpoint(api_keys=str(keys))
    with Client(address, api_key=OTHER) as other, Client(address, api_key=GOOD) as good:
        with pytest.raises(NotAllowed):
            other.ask("Who?", timeout=5)
        keys.write_text(f"{OTHER} carol\n")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert answers(other)
                break
            except NotAllowed:
                time.sleep(0.1)
        with pytest.raises(NotAllowed):
            good.ask("Who?", timeout=5)
        keys.write_text("\xff broken", "latin-1")  # the previous keys stay
        time.sleep(1.5)
        assert answers(other)
    log = (tmp_path / "endpoint.log").read_text()
    assert "cannot be read" in log and not any(key in log for key in (GOOD, OTHER, SLOW, SINGLE))


def test_removing_a_key_leaves_its_running_answer_untouched(endpoint, keys):
    address, _ = endpoint(api_keys=str(keys))
    with Client(address, api_key=GOOD) as client:
        received: list = []
        stream = client.stream("Tell a long story", max_new_tokens=2000)
        pieces = iter(stream)
        next(pieces)
        thread = threading.Thread(target=lambda: received.extend(pieces))
        thread.start()
        keys.write_text(f"{OTHER}\n")
        thread.join(60)
        assert stream.answer.usage.completion_tokens == 2000


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "holds no API key"),
        ("# nothing\n", "holds no API key"),
        (f"{GOOD}\n{GOOD}\n", "line 2: this key is also on an earlier line"),
        (f"{GOOD} alice requests=3\n", "line 1: after key and name"),
        (f"{GOOD} concurrent=-1\n", "line 1: after key and name"),
        ("schl\u00fcssel\n", "not ASCII"),
    ],
)
def test_invalid_key_files_are_refused(text, word, tmp_path):
    (tmp_path / "keys").write_text(text, "utf-8")
    with pytest.raises(InvalidRequest, match=word) as raised:
        read_keys(tmp_path / "keys")
    assert GOOD not in str(raised.value)
