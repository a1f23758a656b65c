"""The Responses API: translate its bodies to Chat Completions, and format its answers. Nothing is stored."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from videollama_core.protocol.messages import Answer
from videollama_gateway.api.chat_request import ChatRequest, read_chat_request, refuse_unsupported
from videollama_gateway.api.completions import extra_of, usage_of
from videollama_gateway.api.parts import TIMES
from videollama_gateway.failures import BadRequest

# Fields with the name and meaning that they have in Chat Completions, whose parser checks them.
_SAME = (
    *("model", "stream", "temperature", "top_p", "top_k", "seed", "max_output_tokens", "user", "metadata", "tools"),
    *("prompt_cache_key", "safety_identifier"),
    *("tool_choice", "parallel_tool_calls", "top_logprobs", "service_tier", *TIMES),
)
# Unsupported fields -> the values that request nothing; any other value is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "store": (False, True),  # clients send true by default; GET of a response is 404
    "include": ([],),
    "truncation": ("disabled",),
    "text": ({"format": {"type": "text"}}, {}),
    "reasoning": ({},),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),  # without effect
}


def read_responses_request(body: Any) -> ChatRequest:
    """Parse a decoded JSON body. Raises: BadRequest for invalid or unknown fields, and for unsupported values."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body is not a JSON object")
    refuse_unsupported(body, (*_SAME, "input", "instructions"), _NEUTRAL)
    if (instructions := body.get("instructions")) is not None and not isinstance(instructions, str):
        raise BadRequest("instructions is not a string", "instructions")
    chat = {name: body[name] for name in _SAME if name in body}
    messages: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    before = len(messages)
    items = body.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise BadRequest("input is neither a string nor a list of messages", "input")
    for index, item in enumerate(items):
        if not isinstance(item, Mapping) or item.get("type", "message") != "message":
            raise BadRequest(f"input[{index}] is not a message", "input")
        messages.append({"role": item.get("role"), "content": item.get("content")})
    try:
        return read_chat_request(chat | {"messages": messages})
    except BadRequest as error:
        text, parameter = (_as_sent(name, before) for name in (str(error), error.parameter or ""))
        raise BadRequest(text, parameter or None, error.status, error.code) from error


def _as_sent(text: str, before: int) -> str:
    """Name an item of `input` where the error names the message made of it, of which `before` others come first."""
    return re.sub(r"^messages\[(\d+)\]", lambda match: f"input[{int(match[1]) - before}]", text)


class ResponsesFormat:
    """The answer to one request in the format of the Responses API."""

    def __init__(self, chat_request: ChatRequest, request_id: str) -> None:
        self._id, self._model, self._created = f"resp_{request_id}", chat_request.model, int(time.time())
        self._item = f"msg_{request_id}"
        self._number = 0

    def whole(self, answer: Answer) -> dict[str, Any]:
        used, is_truncated = usage_of(answer), answer.finish_reason == "length"
        return self._about("incomplete" if is_truncated else "completed") | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_truncated else None,
            "output": [self._message("incomplete" if is_truncated else "completed", answer.text)],
            "usage": {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": used["prompt_tokens_details"],
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used["total_tokens"],
            },
            "vl2": extra_of(answer),
        }

    def begin(self, text: str) -> str:
        """The events up to and including the first text."""
        created = self._about("in_progress")
        opened = (
            self._event("response.created", response=created),
            self._event("response.in_progress", response=created),
            self._event("response.output_item.added", output_index=0, item=self._message("in_progress", None)),
            self._event("response.content_part.added", **self._place(), part=_text("")),
        )
        return "".join(opened) + self.piece(text)

    def piece(self, text: str) -> str:
        return self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def end(self, answer: Answer) -> str:
        response = self.whole(answer)
        return "".join(self._ends(answer, response))

    def _ends(self, answer: Answer, response: dict[str, Any]) -> Iterator[str]:
        yield self._event("response.output_text.done", **self._place(), text=answer.text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_text(answer.text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def error(self, body: dict[str, Any]) -> str:
        error = body["error"]
        return self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def _event(self, kind: str, **content: Any) -> str:
        content = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_text(text)]
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": content}

    def _about(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "output": [],
            "parallel_tool_calls": False,
            "store": False,
            "tool_choice": "none",
            "tools": [],
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
