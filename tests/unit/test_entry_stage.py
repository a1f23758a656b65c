"""Pieces of an answer -> outputs of the public entry, with a stand-in for Triton's module."""

import json
import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from stand_in_triton import imported_entry_stage
from videollama_core.protocol import contract
from videollama_core.protocol.messages import Usage
from videollama_server.answers.answering import Piece, Summary


@pytest.fixture
def entry_stage(monkeypatch):
    with imported_entry_stage(monkeypatch) as module:
        yield module


class Replied:
    """What was sent through a reply, and whether that ends it."""

    def __init__(self):
        self.sent = []

    def is_cancelled(self):
        return False

    def when_cancelled(self, callback):
        pass

    def mark(self, name):
        return ""

    def send(self, values, last=False):
        self.sent.append((set(values), last))


class Loop:
    """Sends at once."""

    def flush_soon(self, sender):
        sender.flush()

    def call(self, work):
        work()


class Telemetry:
    """Measures nothing."""

    def piece(self, piece):
        pass

    def asked(self, question):
        pass


def test_the_summary_ends_the_reply(entry_stage):
    """The periodic message that names the process must see that the request has ended: it once came after the summary."""
    question = entry_stage.QuestionReply(Loop(), reply := Replied(), b"1-a", Telemetry())
    question.send(Piece("a", [5]))
    question.send(Piece("!", [7], Summary("stop", Usage(3, 2, 2), {"total": 0.5})))
    assert reply.sent == [({"text", "output_ids", "process"}, False), ({"text", "output_ids", "summary"}, True)]


def test_the_process_is_named_once_with_the_first_text_or_before_it(entry_stage):
    question = entry_stage.QuestionReply(Loop(), reply := Replied(), b"1-a", Telemetry())
    question.announce()
    question.announce()
    question.send(Piece("a", [5]))
    question.announce()
    assert reply.sent == [({"process"}, False), ({"text", "output_ids"}, False)]
    question.send_keepalive()
    assert reply.sent[2:] == [({"process"}, False)]


def test_only_a_request_that_waits_long_sends_the_process_name(entry_stage, monkeypatch):
    stage, loop = entry_stage.EntryStage.__new__(entry_stage.EntryStage), []
    stage._working, stage._running, stage._published = set(), 0, 0
    stage._loop = SimpleNamespace(call=loop.append)
    replies = [Replied() for _ in range(3)]
    for place, reply in enumerate(replies):
        monkeypatch.setattr(entry_stage, "ANNOUNCE_SECONDS", 60 if place == 0 else 0)
        stage._working.add(entry_stage.QuestionReply(Loop(), reply, b"1-a", Telemetry()))
    next(one for one in stage._working if one._reply is replies[1]).send(Piece("a", [5]))
    stage.on_round()
    assert len(loop) == 1 and not replies[2].sent  # it is said in the loop's thread
    loop.pop()()
    stage.on_round()
    assert not loop and [reply.sent for reply in (replies[0], replies[2])] == [[], [({"process"}, False)]]


def test_only_requested_outputs_are_created(entry_stage, monkeypatch):
    """Triton drops other outputs without holding the interpreter's lock, which corrupts the heap of the stage's
    process.
    """
    decoupled = sys.modules["videollama_server.stages.decoupled"]
    monkeypatch.setattr(decoupled, "respond", lambda _, values: values)
    monkeypatch.setattr(decoupled, "pb", SimpleNamespace(TRITONSERVER_RESPONSE_COMPLETE_FINAL=1))
    sent = []
    request = SimpleNamespace(
        get_response_sender=lambda: SimpleNamespace(send=lambda *words, flags: sent.append((words, flags))),
        request_id=str,
        parameters=str,
        requested_output_names=lambda: ["text", "summary"],
    )
    reply = decoupled.Reply(contract.ENTRY, request)
    reply.send({"text": [b"a"], "output_ids": [5], "process": [b"1-a"]})
    reply.send({"text": [b"!"], "output_ids": [7], "summary": [b"{}"]}, last=True)
    assert sent == [(({"text": [b"a"]},), 0), (({"text": [b"!"], "summary": [b"{}"]},), 1)]


def test_a_piece_becomes_outputs_of_the_contract(entry_stage):
    outputs = entry_stage.outputs
    assert outputs(Piece("é", [5, 6])) == {"text": ["é".encode()], "output_ids": [5, 6]}
    assert outputs(Piece("")) == {"text": [b""]}  # nothing was added: no empty tensor
    last = outputs(Piece("!", [7], Summary("stop", Usage(3, 2, 1, 4), {"total": 0.5})))
    assert set(last) <= {tensor.name for tensor in contract.ENTRY.outputs}
    assert json.loads(last["summary"][0]) == {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "media_tokens": 2, "completion_tokens": 1, "cached_tokens": 4},
        "seconds": {"total": 0.5},
        "frames": [],
    }


@pytest.mark.parametrize(
    ("media", "is_cached", "same_thread"), [(None, False, True), (b"x", True, True), (b"x", False, False)]
)
def test_only_media_that_are_not_cached_take_another_thread(entry_stage, media, is_cached, same_thread):
    """The next request waits for what the calling thread does, and a thread takes longer to wake than a cached answer to begin."""
    stage = entry_stage.EntryStage.__new__(entry_stage.EntryStage)
    answered = queue.SimpleQueue()

    def answer(question, replier, span, cached):
        answered.put((threading.current_thread(), cached))

    stage._entry = SimpleNamespace(cached=lambda question: "tokens" if is_cached else None, answer=answer)
    inputs = dict.fromkeys(tensor.name for tensor in contract.ENTRY.inputs)
    inputs["question"] = np.array([b"Who?"], np.object_)
    if media is not None:
        inputs |= {"media": np.array([media], np.object_), "media_kind": np.array([b"video"], np.object_)}
    assert entry_stage._is_short(inputs)
    with ThreadPoolExecutor(1) as stage._threads:
        stage._read(inputs, entry_stage.QuestionReply(Loop(), Replied(), b"1-a", Telemetry()), is_short=True)
        thread, cached = answered.get(timeout=30)
    assert (thread is threading.current_thread(), cached) == (same_thread, "tokens" if is_cached else None)


@pytest.mark.parametrize(
    ("name", "size"), [("question", 4097), ("messages", 4097), ("media", 2**18 + 1), ("media_url", 5)]
)
def test_long_texts_large_media_and_urls_take_another_thread_at_once(entry_stage, name, size):
    inputs = dict.fromkeys(tensor.name for tensor in contract.ENTRY.inputs)
    assert entry_stage._is_short(inputs)
    assert not entry_stage._is_short(inputs | {name: np.array([b"x" * size], np.object_)})
