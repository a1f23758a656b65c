"""Build gRPC requests from questions. Shared by the synchronous and the asyncio client.

Only this file, answer_reader.py and transport.py know Triton's messages (the KServe v2 protocol).
"""

import hashlib
import json
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from videollama_client.media import SOURCES, Media, read_media
from videollama_client.options import Question
from videollama_core.protocol.contract import ENTRY, OPTIONS, OWN_OPTIONS, SAMPLINGS, WHICH, Tensor
from videollama_core.protocol.errors import BadSegment, InvalidRequest, shown
from videollama_core.protocol.limits import FRAMES
from videollama_core.protocol.messages import SamplingOptions, as_conversation

_NUMPY = {"INT32": np.int32, "FP32": np.float32, "FP64": np.float64, "UINT64": np.uint64, "BOOL": np.bool_}
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_NUMBERS = tuple(option.name for option in (*OPTIONS, *OWN_OPTIONS))
_OPTION_NAMES = {*_NUMBERS, "stop"}
_MEDIA_NAMES = {*SOURCES, "with_audio", *(tensor.name for tensor in WHICH)}
_ROUTE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TIMED_KINDS = ("video", "video_with_audio", "folder", "audio")


def build_question(
    question: Question, request_id: str | None, arguments: Mapping[str, Any]
) -> "service_pb2.ModelInferRequest":
    """Build the request of `ask(question, **arguments)`. Raises: InvalidRequest, before anything is sent."""
    unknown = sorted(set(arguments) - _OPTION_NAMES - _MEDIA_NAMES)
    if unknown:
        raise InvalidRequest(
            f"unknown option {shown(unknown[0])}; options are {', '.join(sorted(_OPTION_NAMES | _MEDIA_NAMES))}"
        )
    conversation = _utf8(_ENCODER.encode(as_conversation(question)), "the question")
    options = SamplingOptions(
        **{name: arguments.get(name) for name in _NUMBERS}, stop=_stop_strings(arguments.get("stop"))
    )
    start, end = arguments.get("start"), arguments.get("end")
    media = read_media(**{name: arguments.get(name) for name in SOURCES}, with_audio=arguments.get("with_audio"))
    _check_segment(start, end, media)
    num_frames, sampling = arguments.get("num_frames"), arguments.get("sampling")
    _check_frames(num_frames, sampling, media)
    values: dict[str, Sequence[Any]] = {"messages": [conversation]}
    if media is not None:
        values["media_kind"] = [media.kind.encode()]
        values |= {"media": media.files} if media.url is None else {"media_url": [_utf8(media.url, "the URL")]}
    selection = {"start": start, "end": end, "num_frames": num_frames, "sampling": sampling and sampling.encode()}
    optional = selection | {name: getattr(options, name) for name in _NUMBERS}
    values |= {name: [value] for name, value in optional.items() if value is not None}
    if options.stop:
        values["stop"] = [_utf8(word, "stop") for word in options.stop]
    return _request(values, request_id)


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name} holds a lone surrogate ({text[error.start]!r}), which is not valid text"
        ) from error


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None or isinstance(stop, str):
        return (stop,) if stop else ()
    if not isinstance(stop, (list, tuple)):
        raise InvalidRequest(f"stop is {shown(stop)}; it takes a string or a list of strings")
    return tuple(stop)


def _check_segment(start: float | None, end: float | None, media: Media | None) -> None:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (
            isinstance(value, (int, float, np.integer, np.floating)) and 0 <= value <= sys.float_info.max
        ):
            raise BadSegment(f"{name} is {shown(value)}; it takes seconds, 0 or more")
    if (start is not None or end is not None) and (media is None or media.kind not in _TIMED_KINDS):
        raise BadSegment("start and end need a video or an audio file")
    if start is not None and end is not None and start > end:
        raise BadSegment(f"start {start:g} s is after end {end:g} s; swap them")


def _check_frames(num_frames: Any, sampling: Any, media: Media | None) -> None:
    if num_frames is not None:
        if (
            isinstance(num_frames, bool)
            or not isinstance(num_frames, (int, np.integer))
            or not 1 <= num_frames <= FRAMES.value
        ):
            raise InvalidRequest(f"num_frames is {shown(num_frames)}; it takes a whole number up to {FRAMES.value}")
        if media is None or media.kind not in ("video", "video_with_audio", "folder"):
            raise InvalidRequest("num_frames needs a video file, a gif or a folder of frames")
    if sampling is not None:
        if not isinstance(sampling, str) or sampling not in SAMPLINGS:
            raise InvalidRequest(f"sampling is {shown(sampling)}; it takes {' or '.join(SAMPLINGS)}")
        if media is None or media.kind not in ("video", "video_with_audio"):
            raise InvalidRequest("sampling needs a video file")


def route_of(request: "service_pb2.ModelInferRequest", media_digest: Any) -> str:
    """Return the routing header: the media's digest, or for text a digest of the request id. Raises: InvalidRequest."""
    if media_digest is not None:
        if not (isinstance(media_digest, str) and _ROUTE.fullmatch(media_digest)):
            raise InvalidRequest(f"media_digest is {shown(media_digest)}; it takes 1 to 128 letters, digits and -._")
        return media_digest
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.name in ("media", "media_url"):
            return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(request.id.encode()).hexdigest()


def build_ping() -> "service_pb2.ModelInferRequest":
    """Build the request that the entry answers with its process name at once."""
    return _request({"ping": [True]}, None)


def _request(values: dict[str, Sequence[Any]], request_id: str | None) -> "service_pb2.ModelInferRequest":
    request = service_pb2.ModelInferRequest(model_name=ENTRY.name, id=request_id or "")
    for name, items in values.items():
        tensor = ENTRY.input(name)
        request.inputs.add(name=name, datatype=tensor.wire_dtype, shape=[len(items)])
        request.raw_input_contents.append(_encode(tensor, items))
    return request


def _encode(tensor: Tensor, items: Sequence[Any]) -> bytes:
    if tensor.dtype == "STRING":
        return b"".join(part for item in items for part in (struct.pack("<I", len(item)), item))
    return np.asarray(items, dtype=_NUMPY[tensor.dtype]).tobytes()
