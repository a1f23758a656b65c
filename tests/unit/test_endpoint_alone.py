"""The endpoint without a server behind it, or with one that answers faster than the client reads: a real endpoint process."""

import select
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_client import Client
from videollama_client.wire import build_question
from videollama_core.protocol.errors import ServerFailed, StageRestarting
from videollama_server.endpoint import process
from videollama_server.endpoint.access import Access
from videollama_server.endpoint.config import EndpointConfig
from videollama_server.endpoint.process import EndpointProcess
from videollama_server.endpoint.state import SupervisorStatus
from videollama_server.ports import choose_ports
from wire_messages import message

MESSAGES, CHARACTERS = (
    60,
    500_000,
)  # of an answer: more than gRPC takes before the caller reads, fewer than the endpoint keeps


@contextmanager
def endpoint_of(folder, status: SupervisorStatus) -> Iterator[tuple[EndpointProcess, str]]:
    """An endpoint in front of the server that listens at `folder`/grpc:1, and its address."""
    (port,) = choose_ports("127.0.0.1", {"--grpc-port": 0})
    address, triton, metrics = f"127.0.0.1:{port}", f"unix:{folder / 'grpc:1'}", str(folder / "metrics")
    config = EndpointConfig(address, "", triton, metrics, ("videollama2",), False, Access())
    endpoint = EndpointProcess(config, folder, folder / "log")
    endpoint.launch(status)
    try:
        yield endpoint, address
    finally:
        endpoint.end()


@pytest.mark.parametrize("accepts", [True, False])
def test_a_new_caller_waits_while_triton_is_started_again(accepts, tmp_path):
    """Such callers once failed at once with "no server answers" or "shutting down": in a soak test, 227 of 300
    questions fell into the seconds of one restart.
    """
    status = SupervisorStatus("the server is being started again", accepts, restarts=True)
    with endpoint_of(tmp_path, status) as (_, address):
        with Client(address) as client:
            assert not client.health()
        with Client(address) as client:
            began = time.monotonic()
            with pytest.raises(StageRestarting, match="the server is being started again; send the request again"):
                client.ask("Who?", timeout=0.8)
            assert time.monotonic() - began > 0.7


def test_the_endpoint_survives_a_machine_that_was_paused(tmp_path, monkeypatch):
    """Its time to answer had passed when both woke up, so it was restarted under its callers."""
    waits = []

    def select_after_a_standstill(*words):
        waits.append(words)
        return ([], [], []) if len(waits) == 1 else select.select(*words)

    with endpoint_of(tmp_path, SupervisorStatus("")) as (endpoint, _):
        monkeypatch.setattr(process, "select", SimpleNamespace(select=select_after_a_standstill))
        assert endpoint.exchange(SupervisorStatus("")).pending == 0 and len(waits) == 2


class _Talker(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Takes Triton's place: sends the whole of a long answer at once."""

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelStreamInfer(self, requests, context):
        for _ in requests:
            for _ in range(MESSAGES):
                yield message(text="x" * CHARACTERS)


def test_an_unread_answer_is_still_delivered_when_the_server_stops(tmp_path):
    """It counted as finished with Triton's last message: `vl2 serve` then stopped before a slow caller had read it (6
    of 32 on busy cores).
    """
    triton = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Talker(), triton)
    triton.add_insecure_port(f"unix:{tmp_path / 'grpc:1'}")
    triton.start()
    ready, stopping = SupervisorStatus(""), SupervisorStatus("the server is stopping", accepts=False)
    # What gRPC takes before it is read; otherwise it measures the connection, and may take everything.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 8 * CHARACTERS)]
    with endpoint_of(tmp_path, ready) as (endpoint, address), grpc.insecure_channel(address, options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStreamInfer(iter([build_question("Who?", "id", {})]))
        next(answer)
        time.sleep(1)  # Triton has said everything
        assert endpoint.exchange(stopping).pending == 1
        for _ in range(MESSAGES - 4):
            next(answer)
        deadline = time.monotonic() + 10
        while endpoint.exchange(stopping).pending and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not endpoint.exchange(stopping).pending
        endpoint.end()
        assert sum(1 for _ in answer) == 3  # they lay in between
    triton.stop(0)


def test_an_empty_host_is_not_every_interface():
    with pytest.raises(ServerFailed, match="--host is empty"):
        choose_ports("", {"--grpc-port": 0})


def test_two_options_with_one_port_are_refused_by_name():
    with pytest.raises(ServerFailed, match="--grpc-port and --http-port are both 8001"):
        choose_ports("127.0.0.1", {"--grpc-port": 8001, "--http-port": 8001})
    assert len(set(choose_ports("127.0.0.1", {"--grpc-port": 0, "--http-port": 0}))) == 2
