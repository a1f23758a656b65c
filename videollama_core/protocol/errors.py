"""Every failure a user, a file or a server can cause, as one tree.

    VideoLlamaError
    +-- InvalidRequest            the caller can fix it
    |   +-- UnreadableMedia       the media cannot be decoded
    |   +-- BadSegment            start/end do not select a part of the video
    |   +-- BadSampling           a generation option is out of range
    |   +-- PromptTooLong         prompt and media tokens do not fit the context
    +-- MediaUnreachable          the server could not fetch the media from its URL
    +-- NotAllowed                the server requires a key or a certificate that the caller lacks
    +-- Overloaded                try again later
    +-- ServerUnreachable         nothing answers at the address (client only)
    +-- DeadlineExceeded          the caller's own timeout passed (client only)
    +-- Cancelled                 the caller cancelled the request or disconnected
    +-- StageFailed               a stage of the server failed; the operator reads its log
    |   +-- StageRestarting       its process is being restarted; the request was not started
    |       +-- StageDied         its process died while it ran this request, which may be the cause, and is restarted
    +-- ArtifactMismatch          converted files are missing, damaged or of another version
    +-- CheckpointMismatch        a checkpoint is incomplete, or not of this family
    +-- ParityFailed              a converted graph disagrees with the PyTorch module
    +-- ServerFailed              the server did not start
    +-- BadSample                 a sample of a data set cannot be used (training and evaluation)
    +-- DownloadFailed            a checkpoint cannot be downloaded completely from the hub
        +-- NotOnHub              the hub has no such repository, revision or file
        +-- AccessDenied          the repository is gated or private
        +-- HubUnreachable        no network, offline mode, or the hub does not answer
        +-- DiskFull              the download does not fit on the disk

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
    triton_code = "INVALID_ARG"
    exit_code = 2


class UnreadableMedia(InvalidRequest):
    pass


class BadSegment(InvalidRequest):
    pass


class BadSampling(InvalidRequest):
    pass


class PromptTooLong(InvalidRequest):
    pass


class MediaUnreachable(VideoLlamaError):
    triton_code = "UNAVAILABLE"
    exit_code = 3


class NotAllowed(VideoLlamaError):
    triton_code = "INVALID_ARG"
    exit_code = 2


class Overloaded(VideoLlamaError):
    triton_code = "UNAVAILABLE"
    exit_code = 3


class ServerUnreachable(VideoLlamaError):
    triton_code = "UNAVAILABLE"
    exit_code = 3


class DeadlineExceeded(VideoLlamaError):
    triton_code = "UNAVAILABLE"
    exit_code = 3


class Cancelled(VideoLlamaError):
    triton_code = "CANCELLED"
    exit_code = 130


class StageFailed(VideoLlamaError):
    pass


class StageRestarting(StageFailed):
    triton_code = "UNAVAILABLE"
    exit_code = 3


class StageDied(StageRestarting):
    pass


class ArtifactMismatch(VideoLlamaError):
    pass


class CheckpointMismatch(VideoLlamaError):
    pass


class ParityFailed(VideoLlamaError):
    pass


class ServerFailed(VideoLlamaError):
    pass


class BadSample(VideoLlamaError):
    pass


class DownloadFailed(VideoLlamaError):
    pass


class NotOnHub(DownloadFailed):
    pass


class AccessDenied(DownloadFailed):
    pass


class HubUnreachable(DownloadFailed):
    exit_code = 3


class DiskFull(DownloadFailed):
    pass


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
