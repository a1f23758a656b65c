"""Parse the body of POST /v1/chat/completions into a question with options."""

import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from videollama_client.media import digest_of
from videollama_core.protocol.limits import NEW_TOKENS
from videollama_core.protocol.messages import Conversation
from videollama_gateway.api.parts import TIMES, MediaParts, read_content
from videollama_gateway.failures import BadRequest

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Fields with the name of an option of the client; those in _WHOLE take whole numbers.
_NUMBERS = ("temperature", "top_p", "top_k", "seed", "repetition_penalty", "vcd_alpha", "vcd_beta", "vcd_noise_step")
_WHOLE = ("top_k", "seed", "vcd_noise_step")
_MOST = sys.float_info.max  # JSON may hold integers that do not fit a float
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_READ = {
    *("model", "messages", "stream", "stream_options", "stop", "media_io_kwargs", "mm_processor_kwargs"),
    *(*_NUMBERS, *_LENGTHS, *TIMES),
}
# Fields that do not affect the answer; they are ignored.
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "fps",  # refused by MediaParts.add_extras
    "max_frames",
}
# Unsupported fields -> the values that leave the answer unchanged; any other value is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "min_p": (0,),
    "best_of": (1,),
    "ignore_eos": (False,),
}


@dataclass(frozen=True)
class ChatRequest:
    """A request in the terms of the client.

    Attributes:
        options: keyword arguments of `AsyncClient.stream`, the media among them.
        media_digest: SHA-256 of the media in hex, which selects the server; None for text.
    """

    model: str
    messages: Conversation
    options: dict[str, Any] = field(default_factory=dict)
    media_digest: str | None = None
    stream: bool = False
    include_usage: bool = False


def read_chat_request(body: Any) -> ChatRequest:
    """Parse a decoded JSON body. Raises: BadRequest for invalid or unknown fields, and for unsupported values."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body is not a JSON object")
    refuse_unsupported(body, _READ | _HARMLESS, _NEUTRAL)
    if not isinstance(body.get("model"), str):
        raise BadRequest("model is missing; GET /v1/models lists the names", "model")
    parts = MediaParts()
    messages = _read_messages(body.get("messages"), parts)
    parts.add_extras(body, "the body")
    for name in ("media_io_kwargs", "mm_processor_kwargs"):
        value = body.get(name)
        parts.add_extras(value, name)
        if isinstance(value, Mapping):
            for kind in ("video", "audio", "image"):
                parts.add_extras(value.get(kind), f"{name}.{kind}")
    options = _sampling_options(body) | _media_options(parts)
    stream_options = {} if (given := body.get("stream_options")) is None else given
    if not isinstance(stream_options, Mapping):
        raise BadRequest("stream_options is not an object", "stream_options")
    return ChatRequest(
        model=body["model"],
        messages=messages,
        options=options,
        media_digest=_digest_of(parts),
        stream=_flag(body, "stream"),
        include_usage=_flag(stream_options, "include_usage"),
    )


def _digest_of(parts: MediaParts) -> str | None:
    """The digest that the client would compute; here, a large body's is computed outside the event loop."""
    items = [item if isinstance(item, bytes) else item.encode("utf-8", "replace") for _, item in parts.media]
    return digest_of(items) if items else None


def refuse_unsupported(body: Mapping[str, Any], known: Container[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse fields that this service would otherwise ignore, although they ask for something.

    Args:
        known: fields that are read or may be ignored.
        neutral: unsupported fields -> their values that ask for nothing.
    Raises: BadRequest.
    """
    for name, value in body.items():
        if name in neutral:
            if value is not None and value not in neutral[name]:
                raise BadRequest(f"{name} is not supported by this service; leave it out", name)
        elif name not in known and value is not None:
            raise BadRequest(f"unknown field {name!r}; leave it out", name)


def _read_messages(messages: Any, parts: MediaParts) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages is not a list with at least one message", "messages")
    conversation: Conversation = []
    users = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = ROLES.get(str(message.get("role"))) if isinstance(message, Mapping) else None
        if role is None:
            raise BadRequest(f"{where}.role is missing or unknown; wanted one of {', '.join(ROLES)}", where)
        media_before = len(parts.media)
        text = read_content(message.get("content"), f"{where}.content", parts)
        users += role == "user"
        if len(parts.media) > media_before and (role != "user" or users > 1):
            raise BadRequest(f"{where} holds media; media belongs to the first user message", where)
        if role == "system" and index:
            raise BadRequest(f"{where}: a system message is the first message; move it there", where)
        conversation.append({"role": role, "content": text})
    return conversation


def _sampling_options(body: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {
        name: _number(body[name], name, whole=name in _WHOLE) for name in _NUMBERS if body.get(name) is not None
    }
    if (stop := body.get("stop")) is not None:
        strings = [stop] if isinstance(stop, str) else stop
        if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
            raise BadRequest("stop is neither a string nor a list of strings", "stop")
        options["stop"] = strings
    lengths = {name: body[name] for name in _LENGTHS if body.get(name) is not None}
    if lengths:
        name, value = next(iter(lengths.items()))
        tokens = _number(value, name, whole=True)
        if not 1 <= tokens <= NEW_TOKENS.value:
            raise BadRequest(f"{name} is {tokens}; wanted 1 to {NEW_TOKENS.value}", name)
        options["max_new_tokens"] = tokens
    return options


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, (bool, type(None))):
        raise BadRequest(f"{name} is {str(value)[:40]!r}; wanted true or false", name)
    return bool(value)


def _number(value: Any, name: str, whole: bool) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST <= value <= _MOST:
        raise BadRequest(f"{name} is {str(value)[:40]!r}; wanted a number", name)
    if whole and value != int(value):
        raise BadRequest(f"{name} is {value!r}; wanted a whole number", name)
    return int(value) if whole else float(value)


def _media_options(parts: MediaParts) -> dict[str, Any]:
    """The media as keyword arguments of the client. Several pictures are the frames of one video."""
    if not parts.media:
        if parts.extras:
            raise BadRequest(f"{next(iter(parts.extras))} needs media", next(iter(parts.extras)))
        return {}
    kinds = {kind for kind, _ in parts.media}
    if len(kinds) > 1 or (len(parts.media) > 1 and kinds != {"image"}):
        kinds_sent = " and ".join(sorted(kind for kind, _ in parts.media))
        raise BadRequest(f"found {kinds_sent}; a question is about one video, one audio file, or pictures", "messages")
    extras = dict(parts.extras)
    for name in ("start", "end"):
        if name in extras:
            extras[name] = _number(extras[name], name, whole=False)
    if "num_frames" in extras:
        extras["num_frames"] = _number(extras["num_frames"], "num_frames", whole=True)
    if "with_audio" in extras and not isinstance(extras["with_audio"], bool):
        raise BadRequest("with_audio is neither true nor false", "with_audio")
    kind, items = parts.media[0][0], [item for _, item in parts.media]
    urls = [item for item in items if isinstance(item, str)]
    if len(items) > 1 and urls:
        raise BadRequest(
            "several pictures must be sent as data: URLs; only a single media item may be given by its URL", "messages"
        )
    if len(items) > 1:
        return {"video": items, **extras}
    return {f"{kind}_url" if urls else kind: items[0], **extras}
