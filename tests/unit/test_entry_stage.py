"""Pieces of an answer -> outputs of the public entry, with a stand-in for Triton's module."""

import json
import sys
from types import SimpleNamespace

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

    def send(self, values, last=False):
        self.sent.append((set(values), last))


class Watch:
    """Measures nothing."""

    def piece(self, piece):
        pass


def test_the_summary_ends_the_reply(entry_stage):
    """The periodic message that names the process must see that the request has ended: it once came after the summary."""
    question = entry_stage.QuestionReply(reply := Replied(), b"1-a", Watch())
    question.send(Piece("a", [5]))
    question.send(Piece("!", [7], Summary("stop", Usage(3, 2, 2), {"total": 0.5})))
    assert reply.sent == [({"text", "output_ids", "process"}, False), ({"text", "output_ids", "summary"}, True)]


def test_the_process_is_named_once_with_the_first_text_or_before_it(entry_stage):
    question = entry_stage.QuestionReply(reply := Replied(), b"1-a", Watch())
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
        stage._working.add(entry_stage.QuestionReply(reply, b"1-a", Watch()))
    next(one for one in stage._working if one._reply is replies[1]).send(Piece("a", [5]))
    stage.look()
    assert len(loop) == 1 and not replies[2].sent  # it is said in the loop's thread
    loop.pop()()
    stage.look()
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
