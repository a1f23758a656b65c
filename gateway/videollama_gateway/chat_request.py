"""The body of POST /v1/chat/completions -> a question with options."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videollama_client.media import digest_of
from videollama_core.protocol.messages import Conversation
from videollama_gateway.failures import BadRequest
from videollama_gateway.parts import TIMES, Found, read_content

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# OpenAI's name, ours
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "repetition_penalty": "repetition_penalty",
    "vcd_alpha": "vcd_alpha",
    "vcd_beta": "vcd_beta",
    "vcd_noise_step": "vcd_noise_step",
    "stop": "stop",
}
_MOST = sys.float_info.max  # JSON may hold whole numbers that no float can
_WHOLE = ("top_k", "seed", "vcd_noise_step")
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_READ = {"model", "messages", "stream", "stream_options", "media_io_kwargs", "mm_processor_kwargs", *TIMES}
# Fields that say nothing about the answer.
_HARMLESS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "fps",  # Found.add_extras refuses them
    "max_frames",
}
# Fields that would change the answer, and the values of them that do not.
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
    """What a caller asked, in the words of the client.

    Attributes:
        options: keyword arguments of `AsyncClient.stream`, the media among them.
        media_digest: of the media, by which a server is chosen; None for text.
    """

    model: str
    messages: Conversation
    options: dict[str, Any] = field(default_factory=dict)
    media_digest: str | None = None
    stream: bool = False
    include_usage: bool = False


def read_chat_request(body: Any) -> ChatRequest:
    """Raises: BadRequest for what is not understood, or would change the answer and cannot be done."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body is not a JSON object")
    _refuse_what_is_not_done(body)
    if not isinstance(body.get("model"), str):
        raise BadRequest("model is missing; GET /v1/models lists the names", "model")
    found = Found()
    messages = _read_messages(body.get("messages"), found)
    found.add_extras(body, "the body")
    for name in ("media_io_kwargs", "mm_processor_kwargs"):
        value = body.get(name)
        found.add_extras(value, name)
        if isinstance(value, Mapping):
            for kind in ("video", "audio", "image"):
                found.add_extras(value.get(kind), f"{name}.{kind}")
    options = _read_options(body) | _media_options(found)
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, Mapping):
        raise BadRequest("stream_options is not an object", "stream_options")
    return ChatRequest(
        model=body["model"],
        messages=messages,
        options=options,
        media_digest=_digest(found),
        stream=bool(body.get("stream")),
        include_usage=bool(stream_options.get("include_usage")),
    )


def _digest(found: Found) -> str | None:
    """As the client would make it: in a thread of a large body's own, here."""
    items = [item if isinstance(item, bytes) else item.encode("utf-8", "replace") for _, item in found.media]
    return digest_of(items) if items else None


def _refuse_what_is_not_done(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _NEUTRAL:
            if value is not None and value not in _NEUTRAL[name]:
                raise BadRequest(f"{name} is not offered by this service; leave it out", name)
        elif name not in _READ | _HARMLESS | set(_OPTIONS) | set(_LENGTHS) and value is not None:
            raise BadRequest(f"unknown field {name!r}", name)


def _read_messages(messages: Any, found: Found) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages is not a list with at least one message", "messages")
    read: Conversation = []
    users = 0
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = ROLES.get(str(message.get("role"))) if isinstance(message, Mapping) else None
        if role is None:
            raise BadRequest(f"{where}.role is none of {', '.join(ROLES)}", where)
        media_before = len(found.media)
        text = read_content(message.get("content"), f"{where}.content", found)
        users += role == "user"
        if len(found.media) > media_before and (role != "user" or users > 1):
            raise BadRequest(f"{where} brings media; media belongs to the first message of the user", where)
        if role == "system" and place:
            raise BadRequest(f"{where}: a system message is the first one", where)
        read.append({"role": role, "content": text})
    return read


def _read_options(body: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, ours in _OPTIONS.items():
        value = body.get(name)
        if value is None:
            continue
        if name == "stop":
            words = [value] if isinstance(value, str) else value
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise BadRequest("stop is neither a string nor a list of strings", name)
            options[ours] = words
            continue
        options[ours] = _number(value, name, whole=name in _WHOLE)
    lengths = {name: body[name] for name in _LENGTHS if body.get(name) is not None}
    if lengths:
        name, value = next(iter(lengths.items()))
        options["max_new_tokens"] = _number(value, name, whole=True)
    return options


def _number(value: Any, name: str, whole: bool) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_MOST <= value <= _MOST:
        raise BadRequest(f"{name} is {str(value)[:40]!r}; wanted a number", name)
    if whole and value != int(value):
        raise BadRequest(f"{name} is {value!r}; wanted a whole number", name)
    return int(value) if whole else float(value)


def _media_options(found: Found) -> dict[str, Any]:
    """The media as keyword arguments of the client. N pictures are the frames of one video."""
    if not found.media:
        if found.extras:
            raise BadRequest(f"{next(iter(found.extras))} needs media", next(iter(found.extras)))
        return {}
    kinds = {kind for kind, _ in found.media}
    if len(kinds) > 1 or (len(found.media) > 1 and kinds != {"image"}):
        held = " and ".join(sorted(kind for kind, _ in found.media))
        raise BadRequest(f"found {held}; a question is about one video, one audio file, or pictures", "messages")
    extras = dict(found.extras)
    for name in ("start", "end"):
        if name in extras:
            extras[name] = _number(extras[name], name, whole=False)
    if "num_frames" in extras:
        extras["num_frames"] = _number(extras["num_frames"], "num_frames", whole=True)
    if "with_audio" in extras and not isinstance(extras["with_audio"], bool):
        raise BadRequest("with_audio is neither true nor false", "with_audio")
    kind, items = found.media[0][0], [item for _, item in found.media]
    by_url = [item for item in items if isinstance(item, str)]
    if len(items) > 1 and by_url:
        raise BadRequest(
            "several pictures are sent as data: URLs; one medium alone may be named by its URL", "messages"
        )
    if len(items) > 1:
        return {"video": items, **extras}
    return {f"{kind}_url" if by_url else kind: items[0], **extras}
