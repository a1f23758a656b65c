"""What becomes of one request, and whether its server still lives. The sync and the async client share all of it."""

import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

from videollama_client.answer_reader import AnswerReader
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import (
    Cancelled,
    InvalidRequest,
    ServerUnreachable,
    StageFailed,
    StageRestarting,
    VideoLlamaError,
    shown,
)
from videollama_core.protocol.limits import REQUEST_ID_CHARACTERS, SILENT_SECONDS
from videollama_core.protocol.trace_context import MEASURED, TRACEPARENT, YES, checked_traceparent

SILENCE_SECONDS = 1.0  # after so long without a message, ask whether the process that has the request still lives
PING_SECONDS = 10.0
MOST_SECONDS = 10_000_000  # of a timeout
READY_SECONDS = 5.0  # for one look whether the server is ready
RESEND_SECONDS = 0.2
RESTART_SECONDS = 15.0  # how long a request that was not accepted is sent again while the entry is being started again


@dataclass(frozen=True)
class Heartbeat:
    """A ping of the entry: when it began, and which process answered or what went wrong."""

    began: float = -math.inf
    process: str | None = None
    error: VideoLlamaError | None = None

    def counts_for(self, asked: float) -> bool:
        """Whether it tells about a request that has been silent for SILENCE_SECONDS at `asked`: it was sent later."""
        return self.began >= asked - SILENCE_SECONDS

    def check(self, process: str | None) -> None:
        """Raises: StageFailed unless the process that has a request still answers; StageRestarting if none has it yet."""
        kind = StageRestarting if process is None else StageFailed
        if self.error is not None:
            raise kind(f"stage {ENTRY.name} does not answer ({self.error}); send the request again") from self.error
        if process is not None and server_of(self.process) != server_of(process):
            return  # a balancer sent the ping elsewhere, which says nothing
        if self.process != process:
            raise kind(f"stage {ENTRY.name}: its process died while it answered; send the request again")


def server_of(process: str | None) -> str:
    """Which server a process is of; "" where it does not say."""
    return (process or "").rpartition(":")[0]


def identity_of(options: dict[str, Any], default_timeout: float | None) -> tuple[str, float | None]:
    """Id and timeout of a request, taken out of its options. Raises: InvalidRequest."""
    request_id, timeout = options.pop("request_id", None), options.pop("timeout", None)
    if request_id is None:
        request_id = uuid.uuid4().hex
    elif not (isinstance(request_id, str) and request_id and request_id.isprintable()):
        raise InvalidRequest(f"request_id is {shown(request_id)}; it takes printable characters")
    REQUEST_ID_CHARACTERS.check(len(request_id), "request_id")
    return request_id, default_timeout if timeout is None else checked_seconds(timeout, "timeout")


def traced(metadata: tuple[tuple[str, str], ...], options: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with what its options say of its trace and metrics, taken out of them. Raises: InvalidRequest."""
    traceparent, measured = options.pop("traceparent", None), options.pop("measured", None)
    if measured not in (None, False, True):
        raise InvalidRequest(f"measured is {shown(measured)}; it takes True or False")
    if measured:
        metadata = (*metadata, (MEASURED, YES))
    if traceparent is None:
        return metadata
    if not isinstance(traceparent, str) or checked_traceparent(traceparent) is None:
        raise InvalidRequest(f"traceparent is {shown(traceparent)}; it takes W3C's form, 00-TRACE-SPAN-FLAGS")
    return (*metadata, (TRACEPARENT, traceparent))


def checked_seconds(seconds: Any, name: str, or_zero: bool = False) -> Any:
    """None, or seconds above 0. Raises: InvalidRequest for anything else, 0 too unless it has a meaning."""
    if seconds is None:
        return None
    good = isinstance(seconds, (int, float, np.integer, np.floating)) and not isinstance(seconds, bool)
    if not good or not 0 <= seconds <= MOST_SECONDS or (seconds == 0 and not or_zero):
        least = "from 0" if or_zero else "above 0"
        raise InvalidRequest(f"{name} is {shown(seconds)}; it takes seconds {least} to {MOST_SECONDS}")
    return float(seconds)


class RequestState:
    """One request on its way: what was read of its answer, and whether it may be sent again."""

    def __init__(self, request_id: str, timeout: float | None, restart_seconds: float = RESTART_SECONDS) -> None:
        self.reader = AnswerReader(request_id)
        self.cancelled = False
        self._heard = time.monotonic()
        self._deadline = time.monotonic() + min(restart_seconds, timeout or restart_seconds)

    def heard(self) -> None:
        """A message came."""
        self._heard = time.monotonic()

    def check_silence(self, heartbeat: Heartbeat | None) -> None:
        """
        Args:
            heartbeat: that was asked for a second of silence ago: what a slow process sent before it has arrived.
        Raises: StageFailed, StageRestarting where nothing more is to be expected.
        """
        if heartbeat is not None:
            heartbeat.check(self.reader.process)
        if time.monotonic() - self._heard > SILENT_SECONDS.value:
            raise StageFailed(
                f"stage {ENTRY.name} answers pings and has said nothing about this request for {SILENT_SECONDS.value} s, "
                "though it says every few seconds that it works on one; send the request again"
            )

    def send_again_or_raise(self, error: VideoLlamaError) -> None:
        """Returns if the request is to be sent again after RESEND_SECONDS: no process had it.

        Raises: Cancelled if the caller cancelled; otherwise the error.
        """
        if self.cancelled:
            raise Cancelled("the request was cancelled") from error
        if self.reader.process is not None or not isinstance(error, StageRestarting):
            raise error
        if time.monotonic() > self._deadline:
            raise error

    def went_on(self) -> StageFailed:
        return StageFailed("the server went on after the last message of an answer; it is broken, or not vl2 serve")

    def of_lost_server(self, error: VideoLlamaError, met: bool) -> VideoLlamaError:
        """A server that answered before and does not take a request now is being started again.

        Args:
            met: whether the client has had an answer from this server.
        """
        if isinstance(error, ServerUnreachable) and met and self.reader.process is None:
            return StageRestarting(str(error))
        return error
