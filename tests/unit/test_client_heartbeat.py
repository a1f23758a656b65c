"""A server that is slow, that lost a request, or that is left: what the client does, at a gRPC server of our own.

A Triton cannot be made slow: it takes a stage's process that stands still for a second for a dead one.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_client import AsyncClient, Cancelled, Client, InvalidRequest, StageFailed
from wire_messages import message

USAGE = {"prompt_tokens": 1, "media_tokens": 0, "completion_tokens": 1}
SUMMARY = {"finish_reason": "stop", "usage": USAGE, "seconds": {}}


class Entry(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says nothing until `awake` is set, then answers in order of arrival; `process` says which process it is."""

    def __init__(self) -> None:
        self.awake, self.process = threading.Event(), "1"
        self.num_questions = self.num_pings = 0

    def ModelStreamInfer(self, requests, context) -> Iterator[service_pb2.ModelStreamInferResponse]:
        is_ping = any(tensor.name == "ping" for tensor in next(requests).inputs)
        self.num_pings += is_ping
        self.num_questions += not is_ping
        while not self.awake.wait(0.05):
            if not context.is_active():
                return
        yield message(process=self.process)
        if not is_ping:
            summary = json.dumps(SUMMARY)
            yield message(text="an answer", summary=summary)


@contextmanager
def serving(entry: Entry) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(40))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(entry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_slow_server_is_waited_for_and_asked_once():
    """20 questions wait 2.5 s in silence: they share their pings, and none is sent again."""
    entry = Entry()
    with serving(entry) as address, Client(address) as client, ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(client.ask, "What?") for _ in range(20)]
        time.sleep(2.5)
        entry.awake.set()
        assert {answer.result(10).text for answer in answers} == {"an answer"}
        assert entry.num_questions == 20 and 1 <= entry.num_pings <= 3


def test_a_slow_server_is_waited_for_and_asked_once_by_asyncio():
    async def ask(address: str) -> set[str]:
        async with AsyncClient(address) as client:
            answers = [asyncio.ensure_future(client.ask("What?")) for _ in range(20)]
            await asyncio.sleep(2.5)
            entry.awake.set()
            return {answer.text for answer in await asyncio.gather(*answers)}

    entry = Entry()
    with serving(entry) as address:
        assert asyncio.run(ask(address)) == {"an answer"}
        assert entry.num_questions == 20 and 1 <= entry.num_pings <= 3


class Forgetful(Entry):
    """Loses what it has begun: another process answers the pings."""

    def ModelStreamInfer(self, requests, context) -> Iterator[service_pb2.ModelStreamInferResponse]:
        is_ping = any(tensor.name == "ping" for tensor in next(requests).inputs)
        yield message(process="2" if is_ping else "1")
        while not is_ping and context.is_active():
            time.sleep(0.05)


def test_a_request_whose_process_died_is_given_up():
    with serving(Forgetful()) as address, Client(address) as client:
        with pytest.raises(StageFailed, match="its process died while it answered; send the request again"):
            client.ask("What?", timeout=20)


def test_whoever_cancels_hears_cancelled_also_from_a_silent_server():
    with serving(Entry()) as address, ThreadPoolExecutor(1) as threads:
        client = Client(address)
        stream = client.stream("What?")
        answer = threads.submit(lambda: stream.answer)
        time.sleep(1.2)  # it waits for its ping by now
        client.close()
        with pytest.raises(Cancelled):
            answer.result(10)


def test_a_closed_client_says_so():
    with serving(Entry()) as address:
        client = Client(address)
        client.close()
        with pytest.raises(InvalidRequest, match="was closed; open another"):
            client.ask("What?")

        async def ask() -> None:
            async with AsyncClient(address) as client:
                pass
            await client.ask("What?")

        with pytest.raises(InvalidRequest, match="was closed; open another"):
            asyncio.run(ask())
