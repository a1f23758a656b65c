"""Ctrl-C while an answer is written."""

import os
import queue
import signal
import threading
import time

import pytest

from videollama_client.cli.interrupts import interrupts_call


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # a line of Python, so that the handler has run


def test_ctrl_c_calls_and_raises_nothing():
    called: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
    with interrupts_call(lambda: called.put(threading.current_thread())) as interrupts:
        assert not interrupts.came
        for _ in range(3):
            interrupt()
        callers = [called.get(timeout=10) for _ in range(3)]
    assert interrupts.came and threading.main_thread() not in callers
    with pytest.raises(KeyboardInterrupt):  # as before
        interrupt()


def test_the_handler_returns_however_the_block_ends():
    with pytest.raises(ValueError), interrupts_call(lambda: None):
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
