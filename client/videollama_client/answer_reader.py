"""Read the gRPC messages of one response: pieces of text first, then the whole answer.

The peer is not trusted: every message is checked against the contract before it is used.
"""

import json
import math
import struct
from typing import Any, NoReturn

import numpy as np
from tritonclient.grpc import service_pb2

from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import InvalidRequest, StageFailed, from_wire, shown
from videollama_core.protocol.limits import ANSWER_BYTES, FRAMES, NEW_TOKENS
from videollama_core.protocol.messages import Answer, FrameSeen, Usage

_OUTPUTS = {tensor.name: tensor for tensor in ENTRY.outputs}
_SPARE_MESSAGES = 1024  # messages without ids: the first, the last, and the keep-alives, which come 10 s apart
_SUMMARY_BYTES = 2**16
_PROCESS_CHARACTERS = 256
_COUNTS = ("prompt_tokens", "media_tokens", "completion_tokens")
_CACHED = "cached_tokens"  # may be absent


class AnswerReader:
    """
    Args:
        request_id: the id of the request being answered; None for a ping, which has none.
    """

    def __init__(self, request_id: str | None = None) -> None:
        self.process: str | None = None  # the server process that holds the request
        self.answer: Answer | None = None
        # The server has sent its last message and closes the stream itself. Cancelling a stream that is just ending can
        # crash Triton 2.51 (its issue 7840), so an ended stream is never cancelled.
        self.ended = False
        self._request_id = request_id
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._num_spare = self._num_characters = 0

    def read(self, message: "service_pb2.ModelStreamInferResponse | None") -> str:
        """Return the text that a message adds, "" if it adds none.

        Raises: the error that the message reports; StageFailed if the message cannot belong to this answer.
        """
        if message is None:  # grpc.aio returns None for bytes that it cannot parse
            _refuse("its bytes are not a protobuf message")
        if message.error_message:
            self.ended = True
            raise from_wire(message.error_message)
        outputs = self._outputs(message.infer_response)
        process: str | None = outputs.get("process")
        if process is not None:
            if not process or len(process) > _PROCESS_CHARACTERS or not process.isprintable():
                _refuse(f"its process name is {shown(process)}")
            if self.process not in (None, process):
                _refuse(f"it comes from two processes, {self.process} and {process}")
            self.process = process
        piece: str = outputs.get("text", "")
        self._add(piece, outputs.get("output_ids", []))
        if "summary" in outputs:
            self.answer = self._whole(outputs["summary"])
            self.ended = True
        return piece

    def _outputs(self, response: "service_pb2.ModelInferResponse") -> dict[str, Any]:
        """Outputs by name: text for BYTES, a list of integers for INT32. Unknown outputs are ignored."""
        if response.model_name not in ("", ENTRY.name):
            _refuse(f"it comes from the model {shown(response.model_name)}")
        if response.id and response.id != (self._request_id or ""):
            _refuse(f"it belongs to the request {shown(response.id)}")
        if len(response.outputs) != len(response.raw_output_contents):
            _refuse(f"it has {len(response.outputs)} outputs and {len(response.raw_output_contents)} contents")
        outputs: dict[str, Any] = {}
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            tensor = _OUTPUTS.get(output.name)
            if tensor is None:
                continue
            if output.name in outputs:
                _refuse(f"it has the output {output.name} twice")
            try:
                tensor.check(output.shape, output.datatype, len(raw))
            except InvalidRequest as error:
                _refuse(str(error), error)
            outputs[output.name] = _text(output.name, raw) if tensor.dtype == "STRING" else _numbers(raw)
        return outputs

    def _add(self, piece: str, ids: list[int]) -> None:
        if ids and min(ids) < 0:
            _refuse(f"output_ids holds {min(ids)}")
        self._pieces.append(piece)
        self._ids.extend(ids)
        self._num_characters += len(piece)
        self._num_spare += not ids
        if piece and not self._ids:
            _refuse("it has text before the first token id")
        for count, most, unit in (
            (len(self._ids), NEW_TOKENS.value, "ids"),
            (self._num_spare, _SPARE_MESSAGES, "messages without ids"),
            (self._num_characters, ANSWER_BYTES.value, "characters"),
        ):
            if count > most:
                _refuse(f"it has more than {most} {unit} and is still going")

    def _whole(self, text: str) -> Answer:
        if len(text) > _SUMMARY_BYTES:
            _refuse(f"its summary has {len(text)} characters")
        try:
            summary = json.loads(text, parse_constant=_refuse_number)
            usage, reason, seconds = summary["usage"], summary["finish_reason"], summary["seconds"]
            counts = [*(usage[name] for name in _COUNTS), usage.get(_CACHED, 0)]
            good = all(type(count) is int and count >= 0 for count in counts) and reason in ("stop", "length")
            good = good and counts[3] <= counts[0] + counts[1]
            good = good and all(type(value) in (int, float) and 0 <= value < math.inf for value in seconds.values())
            frames = tuple(FrameSeen(frame["index"], frame["seconds"]) for frame in summary.get("frames", ()))
            good = good and all(map(_is_valid_frame, frames)) and len(frames) <= FRAMES.value
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            _refuse(f"its summary is {shown(text)}", error)
        if not good:
            _refuse(f"its summary is {shown(text)}")
        if counts[2] != len(self._ids):
            _refuse(f"its summary counts {shown(counts[2])} tokens, but {len(self._ids)} ids arrived")
        return Answer("".join(self._pieces), self._ids, reason, Usage(*counts), seconds, frames)

    def finish(self) -> Answer:
        """Return the answer. Raises: StageFailed if the stream ended before it was complete."""
        if self.answer is None:
            raise StageFailed("the server ended the stream before the answer was complete; send the request again")
        return self.answer


def _is_valid_frame(frame: FrameSeen) -> bool:
    """Any finite time is valid: a damaged file may give its frames arbitrary timestamps."""
    time = frame.seconds
    known = time is None or (type(time) in (int, float) and math.isfinite(time))
    return known and type(frame.index) is int and 0 <= frame.index < 2**63


def _refuse(problem: str, cause: Exception | None = None) -> NoReturn:
    raise StageFailed(
        f"the server's answer cannot be read: {problem}; the server is faulty, runs another version, or is not vl2 serve"
    ) from cause


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(name: str, raw: bytes) -> str:
    length = struct.unpack_from("<I", raw)[0]  # Tensor.check has made sure that there are at least 4 bytes
    if length != len(raw) - 4:
        _refuse(f"{name} declares {length} bytes but has {len(raw) - 4}")
    try:
        return raw[4:].decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"{name} is not UTF-8", error)


def _numbers(raw: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(raw, "<i4").tolist()
    return numbers
