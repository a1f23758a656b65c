"""A server that lies to its client: every lie is a typed error, soon, in plain words, and the same from both clients."""

import asyncio
import gc
import json
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.lies import LIES, PINGS, ids, packed
from security.lying_server import (
    FIRST,
    LAST,
    SUMMARY,
    USAGE,
    endless,
    lying,
    raw,
    silent,
)
from videollama_client import AsyncClient, Client, client, client_async, request_state
from videollama_client.answer_reader import AnswerReader
from videollama_core.protocol import errors
from videollama_core.protocol.errors import ServerUnreachable, StageFailed, VideoLlamaError
from wire_messages import message

AREA = "lying server"
WITHIN_SECONDS = 5.0
RESTART_SECONDS = 0.3


@pytest.fixture
def server(monkeypatch):
    """With shorter timeouts than a real server needs."""
    for module in (client, client_async):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
        monkeypatch.setattr(module, "RESEND_SECONDS", 0.02)
        monkeypatch.setattr(module, "PING_SECONDS", 1.0)
    monkeypatch.setattr(request_state, "SILENT_SECONDS", replace(request_state.SILENT_SECONDS, value=0.6))
    with lying() as started:
        yield started


def ask(address: str) -> str:
    with Client(address, restart_seconds=RESTART_SECONDS) as client:
        return client.ask("What?").text


def ask_by_asyncio(address: str) -> str:
    async def ask() -> str:
        async with AsyncClient(address, restart_seconds=RESTART_SECONDS) as client:
            return (await client.ask("What?")).text

    return asyncio.run(ask())


def found_out(table, name: str, server) -> None:
    """The lie reaches the callers of both clients as the same error, and the call is cancelled."""
    kinds, slowest = [], 0.0
    for asked in (ask, ask_by_asyncio):
        began = time.monotonic()
        with pytest.raises(VideoLlamaError) as raised:
            asked(server.address)
        seconds, text = time.monotonic() - began, str(raised.value)
        assert seconds < WITHIN_SECONDS, (name, asked, seconds)
        assert len(text) < 5000 and all(one.isprintable() or one == "\n" for one in text), (name, text)
        assert text, name
        assert server.idle(), name
        kinds.append(raised.value.kind)
        slowest = max(slowest, seconds)
    assert kinds[0] == kinds[1], (name, kinds)
    table.add(name, kinds[0], slowest)


def test_every_lie_is_a_typed_error(server, case_table):
    assert ask(server.address) == ask_by_asyncio(server.address) == "an answer"
    for name, lie in LIES.items():
        server.lie = lie
        found_out(case_table, name, server)


def test_a_call_that_the_server_cancels_is_no_cancellation_of_the_caller(server):
    server.lie = LIES["cancelled by the server"]
    for asked in ask, ask_by_asyncio:
        with pytest.raises(ServerUnreachable):
            asked(server.address)


def test_lies_in_pings_are_typed_errors(server, case_table):
    server.lie = silent
    for name, lie in PINGS.items():
        server.ping = lie
        found_out(case_table, name, server)


def test_a_server_with_an_invalid_readiness_reply_is_not_ready(server):
    async def health() -> bool:
        async with AsyncClient(server.address) as client:
            return await client.health()

    with Client(server.address) as client:
        assert client.health() and asyncio.run(health())
        for lie in (b"\xff\xff", b"", b"\x08\x00"):
            server.ready = lie
            assert not client.health() and not asyncio.run(health())


def test_valid_messages_are_accepted(server):
    """Ids and a model name that fit, an output that only a later server has, and occasional messages that work goes on."""

    def honest(request, context):
        yield raw(("process", "BYTES", [1], packed(b"1")), id=request.id, model_name="videollama2")
        for _ in range(10):
            time.sleep(0.1)
            yield FIRST
        yield raw(
            ("text", "BYTES", [1], packed(b"an ans")), ("mood", "FP32", [9], b""), ("output_ids", "INT32", [1], ids(5))
        )
        yield LAST

    server.lie = honest
    assert ask(server.address) == ask_by_asyncio(server.address) == "an answer"


def test_an_abandoned_stream_is_cancelled(server):
    """Dropped unread, dropped half-read, and left as a context manager; from both clients."""
    server.lie = endless(message(text="a", output_ids=[5]))

    def drop(client, how: str) -> None:
        if how == "unread":
            client.stream("What?")
        elif how == "half-read":
            for _ in client.stream("What?"):
                break
        else:
            with client.stream("What?") as stream:
                next(iter(stream))
                kept.append(stream)

    async def drop_async(client, how: str) -> None:
        if how == "unread":
            client.stream("What?")
            await asyncio.sleep(0.1)
        elif how == "half-read":
            async for _ in client.stream("What?"):
                break
        else:
            async with client.stream("What?") as stream:
                async for _ in stream:
                    break
                kept.append(stream)

    async def all_async() -> None:
        async with AsyncClient(server.address) as client:
            for how in ("unread", "half-read", "left"):
                await drop_async(client, how)
                gc.collect()
                await asyncio.sleep(0.1)
                assert await asyncio.to_thread(server.idle), how

    kept: list = []
    with Client(server.address) as client:
        for how in ("unread", "half-read", "left"):
            asked = len(server.asked)
            drop(client, how)
            gc.collect()
            while how != "unread" and len(server.asked) == asked:
                time.sleep(0.01)
            assert server.idle(), how
    asyncio.run(all_async())


def test_a_slow_reader_slows_the_server_down(server):
    """Messages of a megabyte each: little is read ahead, however much the server sends."""
    sent = 0

    def flood(request, context):
        nonlocal sent
        yield FIRST
        while context.is_active() and sent < 5000:
            sent += 1
            yield message(text="a" * 100_000, output_ids=[5])

    server.lie = flood
    with Client(server.address) as client, client.stream("What?") as stream:
        next(iter(stream))
        before = -1
        while before != sent:
            before = sent
            time.sleep(0.3)
    assert sent < 2000


PROPERTY = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
OUTPUT = st.tuples(
    st.sampled_from(["text", "output_ids", "summary", "process", "other", ""]),
    st.sampled_from(["BYTES", "INT32", "FP32", "UINT64", "", "x"]),
    st.lists(st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)), max_size=3),
    st.one_of(
        st.binary(max_size=20),
        st.text(max_size=20).map(lambda text: packed(text.encode("utf-8", "replace"))),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*SUMMARY, *USAGE]), inner, max_size=4)
            ),
            max_leaves=8,
        ).map(lambda value: packed(json.dumps(value).encode())),
    ),
)


@PROPERTY
@given(st.lists(st.tuples(st.lists(OUTPUT, max_size=4), st.integers(0, 5), st.text(max_size=3)), max_size=4))
def test_any_messages_give_an_answer_or_a_typed_error(messages):
    reader = AnswerReader("a")
    try:
        for outputs, contents, model in messages:
            assert isinstance(reader.read(raw(*outputs, contents=contents, model_name=model)), str)
        reader.finish()
    except VideoLlamaError:
        pass


def test_errors_from_the_wire_are_short_and_printable():
    error = errors.from_wire("in ensemble, BadSegment: \x1b[31m\x00 end\n" + "x" * 10_000)
    assert type(error) is errors.BadSegment and len(str(error)) < 4000 and "\x1b" not in str(error)
    assert type(errors.from_wire("KeyError: 'x'")) is StageFailed
