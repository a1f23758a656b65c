"""SIGTERM and Ctrl-C: `vl2 serve` acts on them wherever Python is at that moment."""

import os
import signal
import subprocess
import sys
import time

import pytest

from videollama_server.cli import _Stop, _stop_at_signals


class _Finalized:
    """Its finalizer is the worst moment for a signal: exceptions raised in it are discarded."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


@pytest.fixture
def signals(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    _stop_at_signals()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def wait() -> None:
    """Waits until a signal ends it; the read is not in a finalizer."""
    subprocess.run([sys.executable, "-c", "import time; time.sleep(20)"], check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_and_later_ones_change_nothing(signals, number):
    with pytest.raises(_Stop):
        os.kill(os.getpid(), number)
        wait()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)


def test_a_signal_in_a_finalizer_stops_too(signals):
    with pytest.raises(_Stop):
        _Finalized()
        wait()
    time.sleep(0.2)  # and it is not told again


def test_a_second_signal_while_the_first_is_delivered_again_changes_nothing(signals, monkeypatch):
    """Both were lost where it arrived while Python reported a discarded exception."""
    setitimer = signal.setitimer

    def interrupted(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return setitimer(*words)

    monkeypatch.setattr(signal, "setitimer", interrupted)
    with pytest.raises(_Stop):
        _Finalized()
        wait()


def test_a_signal_while_a_process_is_forked_stops_too(signals):
    os.register_at_fork(after_in_parent=lambda: armed and os.kill(os.getpid(), armed.pop()))
    armed = [signal.SIGTERM]
    with pytest.raises(_Stop):
        subprocess.run([sys.executable, "-c", ""], preexec_fn=os.getpid, check=False)
        wait()
