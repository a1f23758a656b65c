"""What becomes of one request, and whether its server still lives. The sync and the async client share all of it."""

import math
import time
from dataclasses import dataclass

from videollama_client.wire import AnswerReader
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import Cancelled, ServerUnreachable, StageFailed, StageRestarting, VideoLlamaError

SILENCE_SECONDS = 1.0  # after so long without a message, ask whether the process that has the request still lives
PING_SECONDS = 10.0
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
        if self.process != process:
            raise kind(f"stage {ENTRY.name}: its process died while it answered; send the request again")


class RequestState:
    """One request on its way: what was read of its answer, and whether it may be sent again."""

    def __init__(self, timeout: float | None) -> None:
        self.reader = AnswerReader()
        self.cancelled = False
        self._deadline = time.monotonic() + min(RESTART_SECONDS, timeout or RESTART_SECONDS)

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

    def of_lost_server(self, error: VideoLlamaError, met: bool) -> VideoLlamaError:
        """A server that answered before and does not take a request now is being started again.

        Args:
            met: whether the client has had an answer from this server.
        """
        if isinstance(error, ServerUnreachable) and met and self.reader.process is None:
            return StageRestarting(str(error))
        return error
