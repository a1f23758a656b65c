"""Ask questions about video, images and text of a VideoLLaMA 2 server; answers stream back."""

from videollama_client.client import AnswerStream, Client
from videollama_client.client_async import AsyncAnswerStream, AsyncClient
from videollama_client.options import QuestionOptions
from videollama_core.protocol.errors import (
    BadSampling,
    BadSegment,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MediaUnreachable,
    NotAllowed,
    Overloaded,
    PromptTooLong,
    ServerUnreachable,
    StageFailed,
    UnreadableMedia,
    VideoLlamaError,
)
from videollama_core.protocol.messages import Answer, Usage

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "BadSampling",
    "BadSegment",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "InvalidRequest",
    "MediaUnreachable",
    "NotAllowed",
    "Overloaded",
    "PromptTooLong",
    "QuestionOptions",
    "ServerUnreachable",
    "StageFailed",
    "UnreadableMedia",
    "Usage",
    "VideoLlamaError",
]
