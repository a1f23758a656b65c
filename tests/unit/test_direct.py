"""The language model's own socket: both ends, over a real socket."""

import asyncio
import queue
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from videollama_core.protocol.errors import InvalidRequest, Overloaded, StageDied, StageFailed, StageRestarting
from videollama_server.answers.generation import AnswerLoop, DirectGeneration
from videollama_server.direct import channel as channel_module
from videollama_server.direct.channel import DirectChannel
from videollama_server.direct.listener import DirectListener

SECONDS = 30


class Stage:
    """A simulated language model: requests arrive in `begun`, ended ones in `stopped`."""

    def __init__(self, path) -> None:
        self.begun, self.stopped = queue.SimpleQueue(), queue.SimpleQueue()
        self.refusal: Exception | None = None
        self.listener = DirectListener(str(path), self._begin, self.stopped.put)

    def _begin(self, message, reply) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.begun.put((bytes(message), reply))

    def request(self):
        return self.begun.get(timeout=SECONDS)


class Call:
    """`next` returns the next event: (ids, cached tokens), an error, None for the end, or "lost"."""

    def __init__(self) -> None:
        self._events = queue.SimpleQueue()
        self.threads = set()

    def _record(self, event) -> None:
        self.threads.add(threading.current_thread())
        self._events.put(event)

    def on_ids(self, ids, cached_tokens) -> None:
        self._record((ids, cached_tokens))

    def on_end(self, error) -> None:
        self._record(error)

    def on_lost(self) -> None:
        self._record("lost")

    def next(self):
        return self._events.get(timeout=SECONDS)

    @property
    def is_silent(self) -> bool:
        return self._events.empty()


@contextmanager
def running_loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop, thread
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def ends(tmp_path):
    """The stage, the channel, and a function that runs a callable in the loop's thread."""
    with running_loop() as (loop, thread):
        channel = DirectChannel(str(tmp_path / "llm"), loop)

        def run(work, *args):
            async def once():
                return work(*args)

            return asyncio.run_coroutine_threadsafe(once(), loop).result(SECONDS)

        stage = Stage(tmp_path / "llm")
        yield stage, channel, run, thread
        run(channel.close)
        stage.listener.close()


def ask(channel, message=b"question"):
    call, number = Call(), channel.number()
    channel.open(number, message, call)
    return number, call


def test_a_request_and_its_answer(ends):
    stage, channel, _, thread = ends
    _, call = ask(channel)
    message, reply = stage.request()
    assert message == b"question"
    reply.send((7,), cached_tokens=40)
    stage.listener.flush()
    assert call.next() == ([7], 40)
    reply.send((8, 9), last=True)
    stage.listener.flush()
    assert [call.next(), call.next()] == [([8, 9], 0), None]
    reply.send((10,))  # after its end
    stage.listener.flush()
    assert call.is_silent and call.threads == {thread}


def test_available_ids_arrive_together_and_answers_stay_separate(ends):
    stage, channel, run, _ = ends
    calls = {number: call for number, call in (ask(channel, b"%d" % place) for place in range(3))}
    replies = [stage.request()[1] for _ in calls]
    blocked, go_on = threading.Event(), threading.Event()
    running = threading.Thread(target=run, args=(lambda: (blocked.set(), go_on.wait(SECONDS)),))
    running.start()
    assert blocked.wait(SECONDS)
    for token in range(100):
        for place, reply in enumerate(replies):
            reply.send((1000 * place + token,), cached_tokens=5 if token == 0 else 0, last=token == 99)
        stage.listener.flush()
    go_on.set()
    running.join()
    for place, call in enumerate(calls.values()):
        assert call.next() == ([1000 * place + token for token in range(100)], 5)
        assert call.next() is None


@pytest.mark.parametrize("size", [0, 1, 70_000, 30_000_000])
def test_messages_of_every_size_arrive_whole_and_in_order(ends, size):
    stage, channel, _, _ = ends
    message = np.random.default_rng(size).bytes(size)
    for sent in (message, b"next"):
        ask(channel, sent)
    assert [stage.request()[0] == sent for sent in (message, b"next")] == [True, True]


def test_many_threads_can_ask_at_once(ends):
    stage, channel, _, _ = ends
    messages = {b"%d " % place * 50_000 for place in range(8)}
    threads = [threading.Thread(target=ask, args=(channel, message)) for message in messages]
    for thread in threads:
        thread.start()
    assert {stage.request()[0] for _ in messages} == messages
    for thread in threads:
        thread.join()


def test_an_answer_longer_than_a_read(ends, monkeypatch):
    """Frames may be split at any byte."""
    monkeypatch.setattr(channel_module, "_READ_BYTES", 7)
    stage, channel, _, _ = ends
    _, call = ask(channel)
    _, reply = stage.request()
    for token in range(50):
        reply.send((token,), last=token == 49)
    stage.listener.flush()
    ids = []
    while (event := call.next()) is not None:
        ids += event[0]
    assert ids == list(range(50))


def test_a_stopped_request_ends_in_the_stage_and_sends_nothing_more(ends):
    stage, channel, run, _ = ends
    number, call = ask(channel)
    _, reply = stage.request()
    assert not reply.is_cancelled()
    run(channel.stop, number)
    assert stage.stopped.get(timeout=SECONDS) is reply and reply.is_cancelled()
    reply.send((1,))
    reply.fail(StageFailed("late"))
    run(channel.stop, number)  # once more
    _, other = ask(channel)
    stage.request()[1].send((2,), last=True)
    stage.listener.flush()
    assert other.next() == ([2], 0) and call.is_silent and stage.stopped.empty()


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (Overloaded("128 requests wait"), Overloaded, "128 requests wait"),
        (InvalidRequest("é: wrong"), InvalidRequest, "é: wrong"),
        (RuntimeError("surprise"), StageFailed, "stage tensorrt_llm: RuntimeError: surprise"),
    ],
)
def test_refusals_keep_their_type_and_the_next_request_is_accepted(ends, refusal, kind, text):
    stage, channel, _, _ = ends
    stage.refusal = refusal
    error = ask(channel)[1].next()
    assert type(error) is kind and str(error) == text
    stage.refusal = None
    _, call = ask(channel)
    stage.request()[1].send((3,), last=True)
    stage.listener.flush()
    assert call.next() == ([3], 0)


def test_an_entry_that_disconnects_ends_only_its_own_requests(ends, tmp_path):
    stage, channel, _, _ = ends
    _, call = ask(channel)
    _, reply = stage.request()
    with running_loop() as (loop, _):
        other = DirectChannel(str(tmp_path / "llm"), loop)
        ask(other)
        _, abandoned = stage.request()
        loop.call_soon_threadsafe(other.close)
        assert stage.stopped.get(timeout=SECONDS) is abandoned and abandoned.is_cancelled()
    abandoned.send((1,))
    reply.send((2,), last=True)
    stage.listener.flush()
    assert call.next() == ([2], 0) and not reply.is_cancelled()


def test_a_dead_stage_is_noticed_at_once_and_used_again_when_it_is_back(ends, tmp_path):
    stage, channel, _, _ = ends
    _, call = ask(channel)
    stage.request()
    stage.listener.close()
    for connection in stage.listener._connections:  # as the kernel does for a process that ends
        connection._socket.shutdown(2)
    assert call.next() == "lost"
    with pytest.raises(OSError):
        ask(channel)
    again = Stage(tmp_path / "llm")
    _, call = ask(channel)
    again.request()[1].send((4,), last=True)
    again.listener.flush()
    assert [call.next(), call.next()] == [([4], 0), None]
    again.listener.close()


def test_a_socket_that_an_earlier_process_left_is_replaced(tmp_path):
    first = Stage(tmp_path / "llm")
    second = Stage(tmp_path / "llm")  # the first is not closed
    with running_loop() as (loop, _):
        channel = DirectChannel(str(tmp_path / "llm"), loop)
        ask(channel)
        assert second.request()[0] == b"question" and first.begun.empty()
        loop.call_soon_threadsafe(channel.close)
    second.listener.close()
    first.listener.close()


def test_a_generation_restarts_fails_or_stops_silently(tmp_path):
    """StageRestarting before the stage listens, an error when it dies at work, and nothing once the request is stopped."""
    events = queue.SimpleQueue()
    listener = SimpleNamespace(on_ids=events.put, on_end=events.put, on_cached_tokens=events.put)
    path = str(tmp_path / "llm")
    loop = AnswerLoop(None, path)
    DirectGeneration(loop, b"question", listener).start()
    assert isinstance(events.get(timeout=SECONDS), StageRestarting)
    stage = Stage(path)
    stopped = DirectGeneration(loop, b"question", listener)
    stopped.start()
    _, reply = stage.request()
    reply.send((7,), cached_tokens=40)
    reply.send((8,))
    stage.listener.flush()
    assert [events.get(timeout=SECONDS), events.get(timeout=SECONDS)] == [40, [7, 8]]
    loop.call(stopped.stop)
    assert stage.stopped.get(timeout=SECONDS) is reply and events.empty()
    DirectGeneration(loop, b"question", listener).start()
    stage.request()
    stage.listener.close()
    for connection in stage.listener._connections:
        connection._socket.shutdown(2)
    error = events.get(timeout=SECONDS)
    assert type(error) is StageDied and "its process died while it answered" in str(error)
    loop.close()
