"""The language model's own socket when one end reads nothing, dies while it sends, or has no descriptor left."""

import errno
import socket
import threading
import time

from test_direct import SECONDS, Stage, ask, running_loop

from videollama_server.direct import frames
from videollama_server.direct.channel import DirectChannel


def test_a_stage_that_reads_nothing_keeps_no_stopped_requests_waiting(tmp_path):
    """Only the one of which a part has left stays; its stop and what is asked afterwards follow it."""
    with socket.socket(socket.AF_UNIX) as listening, running_loop() as (loop, _):
        listening.bind(str(tmp_path / "llm"))
        listening.listen()
        channel = DirectChannel(str(tmp_path / "llm"), loop)
        numbers = [ask(channel, bytes(2**20))[0] for _ in range(5)]
        for number in numbers:
            channel.stop(number)
        last, _ = ask(channel, b"last")
        accepted, _ = listening.accept()
        with accepted, accepted.makefile("rb") as file:
            received = []
            for _ in range(3):
                length, kind, number = frames.HEADER.unpack(file.read(frames.HEADER.size))
                received.append((kind, number, len(file.read(length))))
        assert received == [(frames.REQUEST, 0, 2**20), (frames.STOP, 0, 0), (frames.REQUEST, last, 4)]
        closing = threading.Event()
        loop.call_soon_threadsafe(lambda: (channel.close(), closing.set()))
        assert closing.wait(SECONDS)


def test_a_request_that_did_not_arrive_whole_is_not_begun(tmp_path):
    stage = Stage(tmp_path / "llm")
    with socket.socket(socket.AF_UNIX) as dying:
        dying.connect(str(tmp_path / "llm"))
        dying.sendall(frames.frame(frames.REQUEST, 0, b"question")[:-1])
    with socket.socket(socket.AF_UNIX) as living:
        living.connect(str(tmp_path / "llm"))
        living.sendall(frames.frame(frames.REQUEST, 0, b"whole"))
        assert stage.request()[0] == b"whole"
        while len(stage.listener._connections) != 1:
            time.sleep(0.001)
        assert stage.begun.empty()
    stage.listener.close()


def test_a_listener_that_runs_out_of_descriptors_accepts_later(tmp_path, caplog):
    stage = Stage(tmp_path / "llm")
    listening, failures = stage.listener._socket, []

    class Exhausted:
        """The listening socket, which has no descriptor for its next two connections."""

        def accept(self):
            if len(failures) < 2:
                failures.append(None)
                raise OSError(errno.EMFILE, "Too many open files")
            return listening.accept()

        def __getattr__(self, name):
            return getattr(listening, name)

    stage.listener._socket = Exhausted()
    with running_loop() as (loop, _):
        for content in (b"first", b"second"):  # the thread still waits in the real `accept` for the first
            channel = DirectChannel(str(tmp_path / "llm"), loop)
            ask(channel, content)
            assert stage.request()[0] == content
            loop.call_soon_threadsafe(channel.close)
    assert len(failures) == 2 and caplog.text.count("cannot be accepted") == 2
    stage.listener.close()
