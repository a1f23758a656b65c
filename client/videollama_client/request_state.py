"""The state of one request and the liveness of its server. Shared by the synchronous and the asyncio client."""

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

SILENCE_SECONDS = 1.0  # without a message for this long, ping the process that holds the request
PING_SECONDS = 10.0
MOST_SECONDS = 10_000_000  # the longest timeout
READY_SECONDS = 5.0  # timeout of one readiness check
RESEND_SECONDS = 0.2
RESTART_SECONDS = 15.0  # how long to resend a request that was not accepted while the entry restarts


@dataclass(frozen=True)
class Heartbeat:
    """A ping of the entry: when it was sent, and which process answered or what went wrong."""

    began: float = -math.inf
    process: str | None = None
    error: VideoLlamaError | None = None

    def counts_for(self, now: float) -> bool:
        """Whether it was sent after a request went silent, SILENCE_SECONDS before `now`."""
        return self.began >= now - SILENCE_SECONDS

    def check(self, process: str | None) -> None:
        """Check that the process that holds a request still answers; None if no process has accepted it yet.

        Raises: StageFailed if it does not; StageRestarting if there is none.
        """
        kind = StageRestarting if process is None else StageFailed
        if self.error is not None:
            raise kind(f"stage {ENTRY.name} does not answer ({self.error}); send the request again") from self.error
        if process is not None and server_of(self.process) != server_of(process):
            return  # a load balancer sent the ping to another server, which proves nothing
        if self.process != process:
            raise kind(f"stage {ENTRY.name}: its process died while it answered; send the request again")


def server_of(process: str | None) -> str:
    """The server that a process belongs to; "" if its name does not tell."""
    return (process or "").rpartition(":")[0]


def identity_of(options: dict[str, Any], default_timeout: float | None) -> tuple[str, float | None]:
    """Pop a request's id and timeout (seconds) from its options. Raises: InvalidRequest."""
    request_id, timeout = options.pop("request_id", None), options.pop("timeout", None)
    if request_id is None:
        request_id = uuid.uuid4().hex
    elif not (isinstance(request_id, str) and request_id and request_id.isprintable()):
        raise InvalidRequest(f"request_id is {shown(request_id)}; it takes printable characters")
    REQUEST_ID_CHARACTERS.check(len(request_id), "request_id")
    return request_id, default_timeout if timeout is None else checked_seconds(timeout, "timeout")


def traced(metadata: tuple[tuple[str, str], ...], options: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Pop traceparent and measured from the options and add them to the call's metadata. Raises: InvalidRequest."""
    traceparent, measured = options.pop("traceparent", None), options.pop("measured", None)
    if not isinstance(measured, (bool, np.bool_, type(None))):
        raise InvalidRequest(f"measured is {shown(measured)}; it takes True or False")
    if measured:
        metadata = (*metadata, (MEASURED, YES))
    if traceparent is None:
        return metadata
    if not isinstance(traceparent, str) or checked_traceparent(traceparent) is None:
        raise InvalidRequest(f"traceparent is {shown(traceparent)}; it takes W3C's form, 00-TRACE-SPAN-FLAGS")
    return (*metadata, (TRACEPARENT, traceparent))


def checked_seconds(seconds: Any, name: str, or_zero: bool = False) -> Any:
    """Return seconds above 0 as float, or None; with `or_zero` 0 but not None. Raises: InvalidRequest for anything else."""
    if seconds is None and not or_zero:
        return None
    good = isinstance(seconds, (int, float, np.integer, np.floating)) and not isinstance(seconds, bool)
    if not good or not 0 <= seconds <= MOST_SECONDS or (seconds == 0 and not or_zero):
        least = "from 0" if or_zero else "above 0"
        raise InvalidRequest(f"{name} is {shown(seconds)}; it takes seconds {least} to {MOST_SECONDS}")
    return float(seconds)


class RequestState:
    """One active request: what has been read of its answer, and whether it may be resent."""

    def __init__(self, request_id: str, timeout: float | None, restart_seconds: float = RESTART_SECONDS) -> None:
        self.reader = AnswerReader(request_id)
        self.cancelled = False
        self._last_message = time.monotonic()
        self._deadline = time.monotonic() + min(restart_seconds, timeout or restart_seconds)

    def note_message(self) -> None:
        """Record that a message arrived."""
        self._last_message = time.monotonic()

    def check_silence(self, heartbeat: Heartbeat | None) -> None:
        """
        Args:
            heartbeat: the ping of the previous silent second; what a slow process sent before answering it has arrived.
        Raises: StageFailed or StageRestarting if no further message can be expected.
        """
        if heartbeat is not None:
            heartbeat.check(self.reader.process)
        if time.monotonic() - self._last_message > SILENT_SECONDS.value:
            raise StageFailed(
                f"stage {ENTRY.name} answers pings but has sent nothing for this request in {SILENT_SECONDS.value} s, "
                "although a working stage sends a keep-alive every few seconds; send the request again"
            )

    def send_again_or_raise(self, error: VideoLlamaError) -> None:
        """Return if the request may be resent after RESEND_SECONDS, because no process had accepted it.

        Raises: Cancelled if the caller cancelled; otherwise the error.
        """
        if self.cancelled:
            raise Cancelled("the request was cancelled") from error
        if self.reader.process is not None or not isinstance(error, StageRestarting):
            raise error
        if time.monotonic() > self._deadline:
            raise error

    def endless_stream_error(self) -> StageFailed:
        """The error for a server that does not stop after the last message."""
        return StageFailed(
            "the server kept sending after the last message of an answer; it is faulty, or not vl2 serve"
        )

    def lost_server_error(self, error: VideoLlamaError, has_answered: bool) -> VideoLlamaError:
        """Turn ServerUnreachable into StageRestarting for a server that has answered before: it is restarting.

        Args:
            has_answered: whether this server has answered the client before.
        """
        if isinstance(error, ServerUnreachable) and has_answered and self.reader.process is None:
            return StageRestarting(str(error))
        return error
