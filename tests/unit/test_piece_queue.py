"""The pieces of answers leave in order, together if they had to wait, and many answers at the same time."""

import gc
import threading
import weakref
from types import SimpleNamespace

from videollama_core.protocol.messages import Usage
from videollama_server.answers.answering import Piece, Summary
from videollama_server.answers.generation import TOGETHER, AnswerLoop
from videollama_server.answers.piece_queue import PieceQueue

SECONDS = 30
LAST = Piece("!", [9], Summary("stop", Usage(1, 0, 3), {}))


class Caller(PieceQueue):
    """Records what it is sent; a transmission takes until `opened` is set."""

    def __init__(self, loop, fails=False) -> None:
        super().__init__(loop)
        self.fails = fails
        self.begun, self.opened, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.received, self.threads = [], set()

    def transmit(self, piece) -> None:
        self.begun.set()
        assert self.opened.wait(SECONDS)
        if self.fails:
            raise MemoryError("no shared memory")
        self.threads.add(threading.current_thread().name)
        self.received.append(piece)
        if piece.summary is not None:
            self.ended.set()

    def refuse(self, error) -> None:
        self.received.append(error)
        self.ended.set()

    def on_unsent(self, error) -> None:
        self.received.append(("unsent", error))
        self.ended.set()


def immediate_loop():
    """Flushes in a new thread."""
    return SimpleNamespace(
        flush_soon=lambda sender: threading.Thread(target=sender.flush).start(), call=lambda work: work()
    )


def test_pieces_that_wait_for_a_transmission_leave_together_in_order():
    caller = Caller(immediate_loop())
    caller.put(Piece("a", [1]))
    assert caller.begun.wait(SECONDS)
    for piece in (Piece("b", [2]), Piece("", [3]), LAST):
        caller.put(piece)
    caller.opened.set()
    assert caller.ended.wait(SECONDS)
    assert caller.received == [Piece("a", [1]), Piece("b!", [2, 3, 9], LAST.summary)]


def test_an_error_follows_the_pieces_before_it_and_nothing_follows_the_error():
    caller, error = Caller(immediate_loop()), ValueError("broken")
    caller.put(Piece("a", [1]))
    assert caller.begun.wait(SECONDS)
    caller.put(Piece("b", [2]))
    caller.put_error(error)
    caller.opened.set()
    assert caller.ended.wait(SECONDS)
    caller.put(LAST)
    assert caller.received == [Piece("a", [1]), Piece("b", [2]), error]


def test_an_error_without_pieces_is_sent_at_once():
    caller, error = Caller(immediate_loop()), ValueError("broken")
    caller.put_error(error)
    assert caller.received == [error]


def test_an_error_is_freed_with_its_answer_and_not_by_the_garbage_collector():
    """Its traceback holds the question's media: the server once kept them until the collector ran."""

    class Forgetful(Caller):
        def refuse(self, error) -> None:
            pass

    class Broken(ValueError):
        """Takes a weak reference."""

    caller, error = Forgetful(immediate_loop()), Broken()
    freed = [weakref.ref(caller), weakref.ref(error)]
    gc.disable()
    try:
        caller.put_error(error)
        del error
        assert freed[1]() is None
        del caller
        assert freed[0]() is None
    finally:
        gc.enable()


def test_a_piece_that_cannot_be_sent_is_reported_once_and_ends_the_queue():
    caller = Caller(immediate_loop(), fails=True)
    caller.put(Piece("a", [1]))
    assert caller.begun.wait(SECONDS)
    caller.put(LAST)
    caller.opened.set()
    assert caller.ended.wait(SECONDS)
    ((kind, error),) = caller.received
    assert kind == "unsent" and isinstance(error, MemoryError)


def test_a_first_text_does_not_wait_for_the_end_of_the_turn():
    caller = Caller(SimpleNamespace(flush_soon=lambda sender: None))
    caller.opened.set()
    caller.put(Piece("a", [1]), at_once=True)
    assert caller.received == [Piece("a", [1])]
    caller.put(Piece("b", [2]))
    assert len(caller.received) == 1


def test_many_answers_are_sent_by_several_threads_and_few_by_the_loops_own():
    loop = AnswerLoop(None)
    try:
        callers = [Caller(loop) for _ in range(2 * TOGETHER)]
        first, others = callers[:TOGETHER], callers[TOGETHER:]

        def put(*callers) -> None:
            for caller in callers:
                caller.put(LAST)

        loop.call(lambda: put(*callers))
        for caller in others:  # are sent although the loop waits for the first
            caller.opened.set()
            assert caller.ended.wait(SECONDS)
        assert not first[0].received
        for caller in first:
            caller.opened.set()
            assert caller.ended.wait(SECONDS)
        assert {name for caller in first for name in caller.threads} == {"answers"}
        assert {name for caller in others for name in caller.threads} == {"senders"}
    finally:
        loop.close()
