"""Questions -> gRPC requests, gRPC responses -> pieces of answers. The sync and the async client share all of it.

Beside transport.py the only file that knows Triton's messages (the KServe v2 protocol).
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from videollama_client.media import Media, read_media
from videollama_client.options import Question
from videollama_core.protocol.contract import CONTRAST_OPTIONS, ENTRY, OPTIONS, Tensor
from videollama_core.protocol.errors import BadSegment, InvalidRequest, StageFailed, from_wire
from videollama_core.protocol.messages import Answer, SamplingOptions, Usage, as_conversation

_NUMPY = {"INT32": np.int32, "FP32": np.float32, "FP64": np.float64, "UINT64": np.uint64, "BOOL": np.bool_}
_NUMBERS = tuple(option.name for option in (*OPTIONS, *CONTRAST_OPTIONS))
_OPTION_NAMES = {*_NUMBERS, "stop"}
_MEDIA_NAMES = {"video", "image", "audio", "with_audio", "start", "end"}
_TIMED_KINDS = ("video", "video_with_audio", "folder", "audio")


def build_question(
    question: Question, request_id: str | None, arguments: Mapping[str, Any]
) -> "service_pb2.ModelInferRequest":
    """The request for `ask(question, **arguments)`. Raises: InvalidRequest and its kinds, before anything is sent."""
    unknown = sorted(set(arguments) - _OPTION_NAMES - _MEDIA_NAMES)
    if unknown:
        raise InvalidRequest(
            f"unknown option {unknown[0]!r}; options are {', '.join(sorted(_OPTION_NAMES | _MEDIA_NAMES))}"
        )
    media = read_media(
        arguments.get("video"), arguments.get("image"), arguments.get("audio"), bool(arguments.get("with_audio"))
    )
    start, end = arguments.get("start"), arguments.get("end")
    _check_segment(start, end, media)
    stop = arguments.get("stop") or ()
    options = SamplingOptions(
        **{name: arguments.get(name) for name in _NUMBERS},
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    values: dict[str, Sequence[Any]] = {"messages": [json.dumps(as_conversation(question)).encode()]}
    if media is not None:
        values |= {"media": media.files, "media_kind": [media.kind.encode()]}
    optional = {"start": start, "end": end} | {name: getattr(options, name) for name in _NUMBERS}
    values |= {name: [value] for name, value in optional.items() if value is not None}
    if options.stop:
        values["stop"] = [word.encode() for word in options.stop]
    return _request(values, request_id)


def _check_segment(start: float | None, end: float | None, media: Media | None) -> None:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise BadSegment(f"{name} is {value!r}; it takes seconds from 0 on")
    if (start is not None or end is not None) and (media is None or media.kind not in _TIMED_KINDS):
        raise BadSegment("start and end need a video or a sound")
    if start is not None and end is not None and start > end:
        raise BadSegment(f"start {start:g} s is after end {end:g} s; swap them")


def build_ping() -> "service_pb2.ModelInferRequest":
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


def _decode(response: "service_pb2.ModelInferResponse") -> dict[str, Any]:
    """First string of each BYTES output, list of numbers of each INT32 one."""
    found: dict[str, Any] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            found[output.name] = raw[4 : 4 + struct.unpack("<I", raw[:4])[0]].decode("utf-8")
        else:
            found[output.name] = np.frombuffer(raw, _NUMPY[output.datatype]).tolist()
    return found


class AnswerReader:
    """Messages of one request -> pieces of text, and at the end the whole answer."""

    def __init__(self) -> None:
        self.process: str | None = None  # of the server, which has the request
        self.answer: Answer | None = None
        # The server said its last message and closes the stream by itself. Cancelling a stream that is just ending can
        # crash Triton 2.51 (its issue 7840), so nobody does.
        self.ended = False
        self._pieces: list[str] = []
        self._ids: list[int] = []

    def read(self, message: "service_pb2.ModelStreamInferResponse") -> str:
        """The text that a message adds, "" for none. Raises: the error that it reports."""
        if message.error_message:
            self.ended = True
            raise from_wire(message.error_message)
        outputs = _decode(message.infer_response)
        self.process = outputs.get("process", self.process)
        piece: str = outputs.get("text", "")
        self._pieces.append(piece)
        self._ids.extend(outputs.get("output_ids", []))
        if "summary" in outputs:
            self.ended = True
            summary = json.loads(outputs["summary"])
            self.answer = Answer(
                "".join(self._pieces),
                self._ids,
                summary["finish_reason"],
                Usage(**summary["usage"]),
                summary["seconds"],
            )
        return piece

    def finish(self) -> Answer:
        if self.answer is None:
            raise StageFailed("the server ended the stream before the answer was whole; send the request again")
        return self.answer
