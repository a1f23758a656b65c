"""Every failure that a user, a file or a server can cause, as one tree:

    VideoLlamaError
    +-- InvalidRequest
    |   +-- UnreadableMedia
    |   +-- BadSegment
    |   +-- BadSampling
    |   +-- PromptTooLong
    +-- MediaUnreachable
    +-- NotAllowed
    +-- Overloaded
    +-- ServerUnreachable
    +-- DeadlineExceeded
    +-- Cancelled
    +-- StageFailed
    |   +-- StageRestarting
    |       +-- StageDied
    +-- ArtifactMismatch
    +-- CheckpointMismatch
    +-- ParityFailed
    +-- ServerFailed
    +-- BadSample
    +-- DownloadFailed
        +-- NotOnHub
        +-- AccessDenied
        +-- HubUnreachable
        +-- DiskFull

Between processes an error is the text `Kind: message`: Triton 2.51 drops the status code of an error that passes an
ensemble inside a BLS call, and a gRPC stream carries only the text.
"""

import re


class VideoLlamaError(Exception):
    """Root of the tree. `triton_code` names a member of `TritonError`; `exit_code` is the command line's."""

    triton_code = "INTERNAL"
    exit_code = 1

    @property
    def kind(self) -> str:
        return type(self).__name__

    def to_wire(self) -> str:
        """`Kind: message`, which `from_wire` reads."""
        return f"{self.kind}: {self}"


class InvalidRequest(VideoLlamaError):
    """The caller can correct the request."""

    triton_code = "INVALID_ARG"
    exit_code = 2


class UnreadableMedia(InvalidRequest):
    """The media cannot be decoded."""


class BadSegment(InvalidRequest):
    """`start` and `end` do not select a part of the media."""


class BadSampling(InvalidRequest):
    """A generation option is out of range."""


class PromptTooLong(InvalidRequest):
    """Prompt and media tokens do not fit the context."""


class MediaUnreachable(VideoLlamaError):
    """The server could not fetch the media from its URL."""

    triton_code = "UNAVAILABLE"
    exit_code = 3


class NotAllowed(VideoLlamaError):
    """The caller lacks a key or a certificate that the server requires, or asked for what the server does not offer."""

    triton_code = "INVALID_ARG"
    exit_code = 2


class Overloaded(VideoLlamaError):
    """The server, or this caller, has too many requests; try again later."""

    triton_code = "UNAVAILABLE"
    exit_code = 3


class ServerUnreachable(VideoLlamaError):
    """Nothing answers at the address, or the server is stopping; raised by the client, the gateway and the endpoint."""

    triton_code = "UNAVAILABLE"
    exit_code = 3


class DeadlineExceeded(VideoLlamaError):
    """The caller's own timeout passed; raised by the client alone."""

    triton_code = "UNAVAILABLE"
    exit_code = 3


class Cancelled(VideoLlamaError):
    """The caller cancelled the request or disconnected."""

    triton_code = "CANCELLED"
    exit_code = 130


class StageFailed(VideoLlamaError):
    """A stage of the server failed; its operator finds the reason in the log."""


class StageRestarting(StageFailed):
    """The stage's process is being restarted; it has not begun the request."""

    triton_code = "UNAVAILABLE"
    exit_code = 3


class StageDied(StageRestarting):
    """The stage's process died at work on this request, which may be the cause, and is being restarted."""


class ArtifactMismatch(VideoLlamaError):
    """Converted files are missing, damaged or of another version."""


class CheckpointMismatch(VideoLlamaError):
    """A checkpoint is incomplete, or not of this family."""


class ParityFailed(VideoLlamaError):
    """A converted graph disagrees with the PyTorch module."""


class ServerFailed(VideoLlamaError):
    """The server did not start."""


class BadSample(VideoLlamaError):
    """A sample of a data set cannot be used, in training or evaluation."""


class DownloadFailed(VideoLlamaError):
    """A checkpoint cannot be downloaded completely from the hub."""


class NotOnHub(DownloadFailed):
    """The hub has no such repository, revision or file."""


class AccessDenied(DownloadFailed):
    """The repository is gated or private."""


class HubUnreachable(DownloadFailed):
    """No network, offline mode, or the hub does not answer."""

    exit_code = 3


class DiskFull(DownloadFailed):
    """The download does not fit on the disk."""


def _leaves(root: type[VideoLlamaError]) -> list[type[VideoLlamaError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _leaves(child))]


KINDS = {kind.__name__: kind for kind in _leaves(VideoLlamaError)}
_WIRE = re.compile(rf"\b({'|'.join(sorted(KINDS, key=len, reverse=True))}): (.*)", re.DOTALL)
NO_SHARED_MEMORY = (
    "the server has too little shared memory for this file beside the requests it is answering; try again later, send a "
    "smaller file, or give the server more: vl2 doctor says how much"
)
_NO_SHARED_MEMORY = re.compile(r"shared memory (pool size|region)")
# Triton's own messages, and what they mean to a caller.
_TRITON_MESSAGES: list[tuple[re.Pattern[str], type[VideoLlamaError]]] = [
    (re.compile(r"Stub process '\w+' is not healthy"), StageDied),
    (re.compile(r"has no available versions|is not ready"), StageRestarting),
    (re.compile(r"[Ee]xceeds maximum queue size"), Overloaded),
    (re.compile(r"unknown model|shutting down|Server not ready"), ServerUnreachable),
    (
        re.compile(r"unexpected (shape|datatype|inference input)|inference input|expected \d+ inputs|input '"),
        InvalidRequest,
    ),
    (re.compile(r"cancelled", re.IGNORECASE), Cancelled),
]


def shown(value: object) -> str:
    """The repr of any value for an error message, cut to 80 characters; some values have no repr (an int of 5,000 digits)."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Foreign text for an error message: control characters become "?", and it is cut to 4,000 characters."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text[:4000])


def from_wire(message: str) -> VideoLlamaError:
    """The error that a message from the server denotes; StageFailed for an unknown message."""
    message = printable(message)
    match = _WIRE.search(message)
    if match:
        return KINDS[match[1]](match[2] or "the server gave no reason")
    if _NO_SHARED_MEMORY.search(message):
        return Overloaded(NO_SHARED_MEMORY)
    for pattern, kind in _TRITON_MESSAGES:
        if pattern.search(message):
            advice = "; the stage is restarting, or the server is stopping: send the request again"
            return kind(message + (advice if issubclass(kind, StageRestarting) else ""))
    return StageFailed(message)
