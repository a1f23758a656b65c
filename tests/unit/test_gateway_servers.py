"""The gateway's choice among servers, and streams that end early."""

import asyncio
import json

import pytest

from videollama_core.protocol.errors import Overloaded, ServerUnreachable, StageFailed
from videollama_gateway import answer_route
from videollama_gateway.answer_route import AnswerRoute, _cause
from videollama_gateway.api.chat_request import read_chat_request
from videollama_gateway.api.completions import CompletionFormat
from videollama_gateway.failures import BadRequest
from videollama_gateway.request_telemetry import Telemetry
from videollama_gateway.servers import Server, Servers


def servers(count: int) -> Servers:
    return Servers({"m": [Server(f"host{number}:1", client=None, ready=True) for number in range(count)]})


def test_media_are_routed_to_the_same_server():
    """Each of three servers has a share; when one leaves, only its own media move."""
    known = servers(3)
    media = [f"{number:064x}" for number in range(100)]
    first = [known.in_order("m", digest)[0].address for digest in media]
    assert first == [known.in_order("m", digest)[0].address for digest in media]
    assert min(first.count(f"host{number}:1") for number in range(3)) > 15
    known.models["m"][0].ready = False
    after = [known.in_order("m", digest)[0].address for digest in media]
    assert all(was == now for was, now in zip(first, after, strict=True) if was != "host0:1")
    assert "host0:1" not in after


def test_a_server_takes_no_more_than_its_share():
    known, digest = servers(3), "x" * 64
    favourite = known.in_order("m", digest)[0]
    favourite.running = 9
    assert known.in_order("m", digest)[0] is not favourite and known.in_order("m", digest)[-1] is favourite
    assert known.in_order("m", None)[0] is not favourite
    with pytest.raises(BadRequest, match="does not exist"):
        known.in_order("other", digest)
    for server in known.models["m"]:
        server.ready = False
    with pytest.raises(ServerUnreachable):
        known.in_order("m", digest)


@pytest.mark.parametrize(
    ("error", "cause"),
    [(Overloaded("full"), Overloaded), (KeyError("x"), StageFailed), (asyncio.CancelledError(), None)],
)
def test_an_internal_error_is_not_reported_as_a_disconnect(error, cause):
    told = _cause(error)
    assert told is None if cause is None else isinstance(told, cause)


def answered(monkeypatch, answering, listen, send) -> None:
    """Send a streamed request, which `answering` answers, to a route."""
    monkeypatch.setattr(answer_route, "Answering", lambda *_: answering)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "?"}]}).encode()
    bodies = iter([{"type": "http.request", "body": body}])

    async def receive():
        return next(bodies, None) or await listen()

    async def served() -> None:
        async with asyncio.timeout(30):
            route = AnswerRoute(read_chat_request, CompletionFormat, servers(1), Telemetry())
            await route({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)

    asyncio.run(served())


def test_a_disconnect_before_the_first_event_frees_its_slot(monkeypatch):
    class Answering:
        first, ended = "", False

        async def begin(self):
            pass

        async def leave(self):
            self.ended = True

    async def gone(message):
        raise OSError("the connection is closed")

    async def listen():
        await asyncio.Event().wait()

    answering = Answering()
    answered(monkeypatch, answering, listen, gone)
    assert answering.ended


def test_a_disconnect_before_the_first_text_ends_the_wait(monkeypatch):
    class Answering:
        waits, ended = asyncio.Event(), False

        async def begin(self):
            self.waits.set()
            await asyncio.Event().wait()

        async def leave(self):
            self.ended = True

    async def listen():
        await answering.waits.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError("nobody reads it")

    answering = Answering()
    answered(monkeypatch, answering, listen, send)
    assert answering.ended


def test_a_disconnect_from_a_stalled_stream_frees_its_slot(monkeypatch):
    class Answering:
        first, left, ended = "a", asyncio.Event(), False

        async def begin(self):
            pass

        async def rest(self):
            self.left.set()
            await asyncio.Event().wait()
            yield "never"

        async def leave(self):
            self.ended = True

    sent = []

    async def send(message):
        sent.append(message.get("body"))

    async def listen():
        await answering.left.wait()
        return {"type": "http.disconnect"}

    answering = Answering()
    answered(monkeypatch, answering, listen, send)
    assert answering.ended and len(sent) == 2 and b'"content":"a"' in sent[1]
