"""Runs a function in a forked process and returns its result, its processor time, and the memory it took above its start."""

import os
import pickle
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.protocol.errors import VideoLlamaError


@dataclass(frozen=True)
class Measured:
    answer: str  # "answered", the kind of a typed error, or the name of an untyped one
    message: str
    typed: bool
    seconds: float  # of processor time: others share the machine
    megabytes: float
    value: Any = None


def measured(work: Callable[[], Any], seconds: int = 30, gigabytes: float = 4.0) -> Measured:
    """The process is killed after that many seconds and may take at most that much memory, so that the machine
    survives.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            signal.alarm(seconds)
            resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + int(gigabytes * 2**30),) * 2)
            result = _run(work)
            with os.fdopen(writing, "wb") as file:
                pickle.dump(result, file)
        finally:
            os._exit(0)
    os.close(writing)
    began = time.monotonic()
    with os.fdopen(reading, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        reason = f"killed by {signal.Signals(status & 127).name}" if status & 127 else "no answer"
        return Measured(reason, "", False, time.monotonic() - began, 0.0)
    return pickle.loads(data)


def _run(work: Callable[[], Any]) -> Measured:
    start = _peak()
    began = time.process_time()
    value, message, typed = None, "", True
    try:
        value, answer = work(), "answered"
    except VideoLlamaError as error:
        answer, message = error.kind, str(error)
    except BaseException as error:
        answer, message, typed = type(error).__name__, str(error), False
    return Measured(answer, message[:500], typed, time.process_time() - began, (_peak() - start) / 2**10, value)


def _data_bytes() -> int:
    """What it has from the process that it was forked from: gigabytes, where other tests ran before."""
    status = Path("/proc/self/status").read_text("utf-8", "replace")
    return int(re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 2**10


def _peak() -> int:
    """KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
