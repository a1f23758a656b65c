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
from videollama_client.media import digest_of
from videollama_client.request_state import Heartbeat
from videollama_core.protocol.errors import StageRestarting
from wire_messages import message

USAGE = {"prompt_tokens": 1, "media_tokens": 0, "completion_tokens": 1}
SUMMARY = {"finish_reason": "stop", "usage": USAGE, "seconds": {}}


class Entry(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Sends nothing until `awake` is set, then answers in order of arrival; `process` is the process id it reports."""

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
            yield message(text="an answer", output_ids=[1], summary=summary)


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
    """20 questions wait 2.5 s without an answer: they share their pings, and none is sent again."""
    entry = Entry()
    with serving(entry) as address, Client(address) as client, ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(client.ask, "What?") for _ in range(20)]
        time.sleep(2.5)
        entry.awake.set()
        assert {answer.result(10).text for answer in answers} == {"an answer"}
        assert entry.num_questions == 20 and 1 <= entry.num_pings <= 3


class Elsewhere(Entry):
    """A balancer that routes pings to another server than questions."""

    def ModelStreamInfer(self, requests, context):
        is_ping = any(tensor.name == "ping" for tensor in next(requests).inputs)
        yield message(process="b:7" if is_ping else "a:1")
        if not is_ping:
            assert not self.awake.wait(2.5)
            yield message(text="an answer", output_ids=[1], summary=json.dumps(SUMMARY))


def test_a_ping_answered_by_another_server_proves_nothing():
    async def ask(address: str) -> str:
        async with AsyncClient(address) as client:
            return (await client.ask("What?")).text

    with serving(Elsewhere()) as address, Client(address) as client:
        assert client.ask("What?").text == "an answer" == asyncio.run(ask(address))


def test_another_process_of_the_same_server_means_the_first_one_died():
    Heartbeat(process="a:1").check("a:1")
    Heartbeat(process="b:1").check("a:2")
    for seen, asked in (("a:1", "a:2"), ("1", "2")):
        with pytest.raises(StageFailed, match="died"):
            Heartbeat(process=seen).check(asked)
    with pytest.raises(StageRestarting):  # no process has said that it has the request: it may be sent again
        Heartbeat(process="a:1").check(None)


def test_a_question_and_its_pings_carry_the_header_a_balancer_hashes():
    """Equal media have equal headers, whatever the question; text-only questions have their own header."""
    seen: list[tuple[bool, str]] = []

    class Listening(Entry):
        def ModelStreamInfer(self, requests, context):
            request = next(requests)
            is_ping = any(tensor.name == "ping" for tensor in request.inputs)
            seen.append((is_ping, dict(context.invocation_metadata())["x-vl2-media"]))
            yield message(process="1")
            if not is_ping:
                assert not self.awake.wait(1.2)
                yield message(text="an answer", output_ids=[1], summary=json.dumps(SUMMARY))

    with serving(Listening()) as address, Client(address) as client:
        client.ask("What?", video=b"abc")
        client.ask("Who?", video=b"abc", start=1.0)
        client.ask("Who?", image=b"abd")
        client.ask("Who?")
        client.ask("Who?")
        client.ask("Who?", video=b"abc", media_digest="mine")
        with pytest.raises(InvalidRequest, match="media_digest"):
            client.ask("Who?", video=b"abc", media_digest="two words")
    questions = [value for is_ping, value in seen if not is_ping]
    assert questions[0] == questions[1] == digest_of([b"abc"]) and questions[5] == "mine"
    assert len(set(questions)) == 5
    assert all(value == seen[place - 1][1] for place, (is_ping, value) in enumerate(seen) if is_ping)
    assert any(is_ping for is_ping, _ in seen)


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
    """Loses the requests it has begun: another process answers the pings."""

    def ModelStreamInfer(self, requests, context) -> Iterator[service_pb2.ModelStreamInferResponse]:
        is_ping = any(tensor.name == "ping" for tensor in next(requests).inputs)
        yield message(process="2" if is_ping else "1")
        while not is_ping and context.is_active():
            time.sleep(0.05)


def test_a_request_whose_process_died_fails():
    with serving(Forgetful()) as address, Client(address) as client:
        with pytest.raises(StageFailed, match="its process died while it answered; send the request again"):
            client.ask("What?", timeout=20)


def test_cancelling_raises_cancelled_even_if_the_server_is_silent():
    with serving(Entry()) as address, ThreadPoolExecutor(1) as threads:
        client = Client(address)
        stream = client.stream("What?")
        answer = threads.submit(lambda: stream.answer)
        time.sleep(1.2)  # it waits for its ping by now
        client.close()
        with pytest.raises(Cancelled):
            answer.result(10)


def test_a_closed_client_raises_a_clear_error():
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
