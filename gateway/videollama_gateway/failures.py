"""Map the project's errors to the OpenAI API's: an HTTP status and a body.

Bad media is 400, because clients retry 429 and 5xx, sending a whole video again.
"""

from typing import Any

from videollama_core.protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MediaUnreachable,
    NotAllowed,
    Overloaded,
    ServerUnreachable,
    StageRestarting,
    VideoLlamaError,
)

_STATUS: tuple[tuple[type[VideoLlamaError], int, str], ...] = (  # the first match applies
    (InvalidRequest, 400, "invalid_request_error"),
    (MediaUnreachable, 400, "invalid_request_error"),
    (NotAllowed, 401, "authentication_error"),
    (Overloaded, 429, "rate_limit_error"),
    (StageRestarting, 503, "server_error"),
    (ServerUnreachable, 503, "server_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (Cancelled, 499, "cancelled"),
    (VideoLlamaError, 500, "server_error"),
)
RETRY_SECONDS = 1  # in the Retry-After header


class BadRequest(InvalidRequest):
    """An invalid request; `parameter` names the field of the body."""

    def __init__(self, message: str, parameter: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.parameter, self.status, self.code = parameter, status, code


def status_of(error: VideoLlamaError) -> tuple[int, str]:
    """HTTP status and OpenAI error type."""
    status, kind = next((status, kind) for error_type, status, kind in _STATUS if isinstance(error, error_type))
    return (error.status, kind) if isinstance(error, BadRequest) else (status, kind)


def body_of(error: VideoLlamaError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`; the code defaults to the error's kind."""
    parameter, code = (error.parameter, error.code) if isinstance(error, BadRequest) else (None, None)
    kind = "invalid_request" if isinstance(error, BadRequest) else error.kind
    return {
        "error": {"message": str(error), "type": status_of(error)[1], "param": parameter, "code": code or kind},
    }


def headers_of(error: VideoLlamaError) -> dict[str, str]:
    """Retry-After for the errors that a retry may overcome."""
    return {"retry-after": str(RETRY_SECONDS)} if status_of(error)[0] in (429, 503) else {}
