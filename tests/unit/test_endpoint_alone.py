"""The endpoint without a server behind it, or with one that answers faster than is read: a real endpoint process."""

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
from videollama_core.protocol.errors import StageRestarting
from videollama_server.endpoint import process
from videollama_server.endpoint.access import Access
from videollama_server.endpoint.config import EndpointConfig
from videollama_server.endpoint.process import EndpointProcess
from videollama_server.endpoint.state import Told
from videollama_server.ports import choose_ports
from wire_messages import message

MESSAGES, CHARACTERS = (
    60,
    500_000,
)  # of an answer: more than gRPC takes before the caller reads, fewer than the endpoint keeps


@contextmanager
def endpoint_of(folder, told: Told) -> Iterator[tuple[EndpointProcess, str]]:
    """An endpoint in front of whoever listens at `folder`/grpc:1, and its address."""
    (port,) = choose_ports("127.0.0.1", {"--grpc-port": 0})
    address, triton, metrics = f"127.0.0.1:{port}", f"unix:{folder / 'grpc:1'}", str(folder / "metrics")
    config = EndpointConfig(address, "", triton, metrics, ("videollama2",), False, Access())
    endpoint = EndpointProcess(config, folder, folder / "log")
    endpoint.launch(told)
    try:
        yield endpoint, address
    finally:
        endpoint.end()


@pytest.mark.parametrize("accepts", [True, False])
def test_a_new_caller_waits_while_triton_is_started_again(accepts, tmp_path):
    """It was told at once that no server answers, or that it is shutting down: in a soak, 227 of 300 questions fell into the seconds
    of one restart."""
    told = Told("the server is being started again", accepts, restarts=True)
    with endpoint_of(tmp_path, told) as (_, address):
        with Client(address) as client:
            assert not client.health()
        with Client(address) as client:
            began = time.monotonic()
            with pytest.raises(StageRestarting, match="the server is being started again; send the request again"):
                client.ask("Who?", timeout=0.8)
            assert time.monotonic() - began > 0.7


def test_it_is_not_given_up_where_the_machine_stood_still(tmp_path, monkeypatch):
    """The time for its answer was over when both awoke, and it was started again under its callers."""
    waits = []

    def select_after_a_standstill(*words):
        waits.append(words)
        return ([], [], []) if len(waits) == 1 else select.select(*words)

    with endpoint_of(tmp_path, Told("")) as (endpoint, _):
        monkeypatch.setattr(process, "select", SimpleNamespace(select=select_after_a_standstill))
        assert endpoint.tell(Told("")).pending == 0 and len(waits) == 2


class _Talker(service_pb2_grpc.GRPCInferenceServiceServicer):
    """In Triton's place: the whole of a long answer at once."""

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelStreamInfer(self, requests, context):
        for _ in requests:
            for _ in range(MESSAGES):
                yield message(text="x" * CHARACTERS)


def test_an_answer_that_is_not_yet_taken_is_on_its_way_and_outlives_the_end(tmp_path):
    """It counted as ended with Triton's last word: `vl2 serve` then stopped before a slow caller had read it (6 of 32 on busy cores)."""
    triton = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Talker(), triton)
    triton.add_insecure_port(f"unix:{tmp_path / 'grpc:1'}")
    triton.start()
    ready, stopping = Told(""), Told("the server is stopping", accepts=False)
    with endpoint_of(tmp_path, ready) as (endpoint, address), grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStreamInfer(iter([build_question("Who?", "id", {})]))
        next(answer)
        time.sleep(1)  # Triton has said everything
        assert endpoint.tell(stopping).pending == 1
        for _ in range(MESSAGES - 4):
            next(answer)
        deadline = time.monotonic() + 10
        while endpoint.tell(stopping).pending and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not endpoint.tell(stopping).pending
        endpoint.end()
        assert sum(1 for _ in answer) == 3  # they lay in between
    triton.stop(0)
