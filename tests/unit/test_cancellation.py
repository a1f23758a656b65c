"""Cancellation: the endpoint sends the entry a message, and resets the call only if that does not end it."""

import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from test_endpoint_alone import endpoint_of
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stand_in_triton import imported_entry_stage
from videollama_client.wire import build_question
from videollama_core.protocol import contract
from videollama_core.protocol.trace_context import CANCELLED, REQUEST
from videollama_server.endpoint import cancellation
from videollama_server.endpoint.state import SupervisorStatus
from wire_messages import message

SECONDS = 30


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers a question until cancel message number `obeys` arrives; records events in order."""

    def __init__(self, obeys: int) -> None:
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self._obeys, self._cancelled, self._pings = obeys, set(), 0

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelStreamInfer(self, requests, context):
        metadata = dict(context.invocation_metadata())
        (request,) = requests
        if [tensor.name for tensor in request.inputs] == ["ping"]:
            self._pings += 1
            if self._pings >= self._obeys:
                self._cancelled.add(metadata[CANCELLED])
            self.events.put(("cancelled", metadata[CANCELLED]))
            yield message(process="1-a")
            return
        mark = metadata[REQUEST]
        self.events.put(("asked", mark))
        yield message(text="a")
        while mark not in self._cancelled and context.is_active():
            yield message(text="b")
        self.events.put(("ended" if context.is_active() else "reset", mark))


@pytest.fixture
def asked(tmp_path):
    """A factory: a fake Triton, and a running answer of the endpoint in front of it."""
    stops = []

    def ask(obeys: int):
        triton, server = Triton(obeys), grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        server.add_insecure_port(f"unix:{tmp_path / 'grpc:1'}")
        server.start()
        stops.append(lambda: server.stop(0).wait())
        context = endpoint_of(tmp_path, SupervisorStatus(""))
        _, address = context.__enter__()
        stops.append(lambda: context.__exit__(None, None, None))
        channel = grpc.insecure_channel(address)
        stops.append(channel.close)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStreamInfer(iter([build_question("Who?", "id", {})]))
        next(answer)
        return triton, answer

    yield ask
    for stop in reversed(stops):
        stop()


@pytest.mark.parametrize("obeys", [1, 3])
def test_cancel_messages_repeat_until_the_call_ends_and_the_call_is_not_reset(asked, obeys):
    """A message that overtakes its request is lost."""
    triton, answer = asked(obeys)
    kind, mark = triton.events.get(timeout=SECONDS)
    assert kind == "asked" and len(mark) == 16
    answer.cancel()
    told = [triton.events.get(timeout=SECONDS) for _ in range(obeys)]
    assert told == [("cancelled", mark)] * obeys
    assert triton.events.get(timeout=SECONDS) == ("ended", mark)


class Channel:
    """Records what is sent; `connects` says whether there is a connection."""

    def __init__(self, connects: bool = True) -> None:
        self.sent, self.connects = [], connects

    def open_at_once(self, path, message, listener, metadata=()):
        self.sent.append((service_pb2.ModelInferRequest.FromString(message), dict(metadata)))
        return self.connects


class Call:
    ended, was_reset = None, False

    def cancel(self):
        self.was_reset = True


@pytest.fixture
def clock(monkeypatch):
    """Runs scheduled callbacks on demand."""
    due = []
    loop = SimpleNamespace(call_later=lambda _, work: due.append(work))
    monkeypatch.setattr(cancellation.asyncio, "get_running_loop", lambda: loop)
    return due


def test_a_call_that_does_not_end_is_reset(clock):
    channel, call = Channel(), Call()
    cancellation.Cancellation(channel, call, "0123456789abcdef")
    while clock:
        assert not call.was_reset
        clock.pop()()
    assert call.was_reset and len(channel.sent) == 20
    request, metadata = channel.sent[0]
    assert request.model_name == "videollama2" and metadata == {CANCELLED: "0123456789abcdef"}


def test_no_cancel_message_follows_the_end_of_a_call(clock):
    channel = Channel()
    cancellation.Cancellation(channel, Call(), "a" * 16).has_ended = True
    clock.pop()()
    assert len(channel.sent) == 1 and not clock


def test_a_call_whose_connection_is_gone_is_reset(clock):
    call = Call()
    cancellation.Cancellation(Channel(connects=False), call, "a" * 16)
    assert call.was_reset and not clock


@pytest.fixture
def stage(monkeypatch):
    """The entry's stage with no running question, and the module of its replies."""
    with imported_entry_stage(monkeypatch) as module:
        entry = module.EntryStage.__new__(module.EntryStage)
        entry._marked, entry._process = {}, b"1-a"
        decoupled = sys.modules["videollama_server.stages.decoupled"]
        monkeypatch.setattr(decoupled, "respond", lambda _, values: values)
        monkeypatch.setattr(decoupled, "pb", SimpleNamespace(TRITONSERVER_RESPONSE_COMPLETE_FINAL=1))
        yield entry, decoupled


def reply_of(decoupled, parameters: str, is_cancelled=lambda: False):
    sender = SimpleNamespace(send=lambda *_, flags: None, is_cancelled=is_cancelled)
    request = SimpleNamespace(
        get_response_sender=lambda: sender,
        request_id=str,
        parameters=lambda: parameters,
        requested_output_names=lambda: ["process"],
    )
    return decoupled.Reply(contract.ENTRY, request)


def test_a_cancel_message_cancels_only_the_request_it_names(stage):
    entry, decoupled = stage
    replies = {mark: reply_of(decoupled, "") for mark in ("a" * 16, "b" * 16)}
    entry._marked.update(replies)
    left = []
    replies["a" * 16].when_cancelled(lambda: left.append("a"))
    inputs = {"ping": np.ones(1, np.bool_)}
    for named in ("c" * 16, "no mark", "a" * 16, "a" * 16):
        ping = reply_of(decoupled, f'{{"{CANCELLED}": "{named}"}}')
        entry.answer(inputs, ping)
        assert ping.ended
    assert left == ["a"] and [reply.is_cancelled() for reply in replies.values()] == [True, False]


def test_triton_is_polled_for_cancellation_only_as_often_as_set(stage):
    _, decoupled = stage
    asked = []
    reply = reply_of(decoupled, "", lambda: bool(asked.append(1)))
    reply.check_caller()
    reply.check_caller()
    assert len(asked) == 2
    reply.check_seconds = 60
    reply.check_caller()
    reply.check_caller()
    assert len(asked) == 3
