"""Format answers for the Chat Completions API: whole completions, and chunks of a stream."""

import json
import time
from dataclasses import asdict
from typing import Any, Protocol

from videollama_core.protocol.messages import Answer
from videollama_gateway.api.chat_request import ChatRequest

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class AnswerFormat(Protocol):
    """The format of one API's answers: a JSON object, or server-sent events."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the JSON object of an answer that is not streamed."""
        ...

    def begin(self, text: str) -> str:
        """Return the first events of a stream, with the first text."""
        ...

    def piece(self, text: str) -> str:
        """Return the event for further text."""
        ...

    def end(self, answer: Answer) -> str:
        """Return the events after the last text."""
        ...

    def error(self, body: dict[str, Any]) -> str:
        """Return the event for an error, whose body is that of `failures.body_of`."""
        ...


class CompletionFormat:
    """The answer to one request; every chunk carries the same id, creation time and model."""

    def __init__(self, chat_request: ChatRequest, request_id: str) -> None:
        self._id, self._model, self._created = f"chatcmpl-{request_id}", chat_request.model, int(time.time())
        self._include_usage = chat_request.include_usage

    def whole(self, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return self._about("chat.completion") | {
            "choices": [choice],
            "usage": usage_of(answer),
            "vl2": extra_of(answer),
        }

    def begin(self, text: str) -> str:
        return self._chunk({"role": "assistant", "content": text})

    def piece(self, text: str) -> str:
        return self._chunk({"content": text})

    def end(self, answer: Answer) -> str:
        events = self._chunk({}, answer.finish_reason)
        if self._include_usage:
            about = self._about("chat.completion.chunk")
            events += event(about | {"choices": [], "usage": usage_of(answer), "vl2": extra_of(answer)})
        return events + "data: [DONE]\n\n"

    def error(self, body: dict[str, Any]) -> str:
        return event(body)

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self._about("chat.completion.chunk") | {"choices": [choice]})

    def _about(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {_ENCODER.encode(content)}\n\n"


def was_cached(answer: Answer) -> bool:
    """Whether the media tokens came from the cache."""
    return bool(answer.usage.media_tokens) and not answer.seconds.get("encoder", 0.0)


def usage_of(answer: Answer) -> dict[str, Any]:
    """The usage object; media tokens count as prompt tokens."""
    used = answer.usage
    prompt = used.prompt_tokens + used.media_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used.completion_tokens,
        "total_tokens": prompt + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }


def extra_of(answer: Answer) -> dict[str, Any]:
    """The `vl2` object: what OpenAI's schema has no field for."""
    frames = [asdict(frame) for frame in answer.frames]
    return {"media_tokens": answer.usage.media_tokens, "seconds": answer.seconds, "frames": frames}
