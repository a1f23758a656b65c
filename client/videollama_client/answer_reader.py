"""gRPC messages of one request -> pieces of text, and at the end the whole answer.

What answers may be anything: every message is held against the contract before it is believed.
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
_SPARE_MESSAGES = 1024  # without ids: the first, the last, and what says that work goes on, 10 s apart
_SUMMARY_BYTES = 2**16
_PROCESS_CHARACTERS = 256
_COUNTS = ("prompt_tokens", "media_tokens", "completion_tokens")
_CACHED = "cached_tokens"  # may be absent


class AnswerReader:
    """
    Args:
        request_id: of the request whose answer it is; None for a ping, which has none.
    """

    def __init__(self, request_id: str | None = None) -> None:
        self.process: str | None = None  # of the server, which has the request
        self.answer: Answer | None = None
        # The server said its last message and closes the stream by itself. Cancelling a stream that is just ending can
        # crash Triton 2.51 (its issue 7840), so nobody does.
        self.ended = False
        self._request_id = request_id
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._num_spare = self._num_characters = 0

    def read(self, message: "service_pb2.ModelStreamInferResponse | None") -> str:
        """The text that a message adds, "" for none.

        Raises: the error that it reports; StageFailed where it can be no message of this answer.
        """
        if message is None:  # what grpc.aio makes of bytes that are no message
            _refuse("its bytes are no message")
        if message.error_message:
            self.ended = True
            raise from_wire(message.error_message)
        outputs = self._outputs(message.infer_response)
        process: str | None = outputs.get("process")
        if process is not None:
            if not process or len(process) > _PROCESS_CHARACTERS or not process.isprintable():
                _refuse(f"its process is called {shown(process)}")
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
        """Text of each BYTES output, list of numbers of each INT32 one; those that the contract does not have are left out."""
        if response.model_name not in ("", ENTRY.name):
            _refuse(f"it comes from the model {shown(response.model_name)}")
        if response.id and response.id != (self._request_id or ""):
            _refuse(f"it belongs to the request {shown(response.id)}")
        if len(response.outputs) != len(response.raw_output_contents):
            _refuse(f"it has {len(response.outputs)} outputs and {len(response.raw_output_contents)} contents")
        found: dict[str, Any] = {}
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            tensor = _OUTPUTS.get(output.name)
            if tensor is None:
                continue
            if output.name in found:
                _refuse(f"it has {output.name} twice")
            try:
                tensor.check(output.shape, output.datatype, len(raw))
            except InvalidRequest as error:
                _refuse(str(error), error)
            found[output.name] = _text(output.name, raw) if tensor.dtype == "STRING" else _numbers(raw)
        return found

    def _add(self, piece: str, ids: list[int]) -> None:
        if ids and min(ids) < 0:
            _refuse(f"output_ids holds {min(ids)}")
        self._pieces.append(piece)
        self._ids.extend(ids)
        self._num_characters += len(piece)
        self._num_spare += not ids
        if piece and not self._ids:
            _refuse("it has text before the first id")
        for count, most, unit in (
            (len(self._ids), NEW_TOKENS.value, "ids"),
            (self._num_spare, _SPARE_MESSAGES, "messages without ids"),
            (self._num_characters, ANSWER_BYTES.value, "characters"),
        ):
            if count > most:
                _refuse(f"it has more than {most} {unit}, and goes on")

    def _whole(self, text: str) -> Answer:
        if len(text) > _SUMMARY_BYTES:
            _refuse(f"its summary has {len(text)} characters")
        try:
            summary = json.loads(text, parse_constant=_refuse_number)
            usage, reason, seconds = summary["usage"], summary["finish_reason"], summary["seconds"]
            counts = [*(usage[name] for name in _COUNTS), usage.get(_CACHED, 0)]
            good = all(type(count) is int and count >= 0 for count in counts) and reason in ("stop", "length")
            good = good and counts[3] <= counts[0] + counts[1]
            good = good and all(type(one) in (int, float) and 0 <= one < math.inf for one in seconds.values())
            frames = tuple(FrameSeen(one["index"], one["seconds"]) for one in summary.get("frames", ()))
            good = good and all(map(_can_be_seen, frames)) and len(frames) <= FRAMES.value
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            _refuse(f"its summary is {shown(text)}", error)
        if not good:
            _refuse(f"its summary is {shown(text)}")
        if counts[2] != len(self._ids):
            _refuse(f"its summary tells of {shown(counts[2])} tokens, and {len(self._ids)} ids came")
        return Answer("".join(self._pieces), self._ids, reason, Usage(*counts), seconds, frames)

    def finish(self) -> Answer:
        """Raises: StageFailed unless the answer is whole."""
        if self.answer is None:
            raise StageFailed("the server ended the stream before the answer was whole; send the request again")
        return self.answer


def _can_be_seen(frame: FrameSeen) -> bool:
    """A damaged file may give its frames any times."""
    time = frame.seconds
    known = time is None or (type(time) in (int, float) and math.isfinite(time))
    return known and type(frame.index) is int and 0 <= frame.index < 2**63


def _refuse(found: str, cause: Exception | None = None) -> NoReturn:
    raise StageFailed(
        f"the server's answer cannot be read: {found}; the server is broken, of another version, or not vl2 serve"
    ) from cause


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(name: str, raw: bytes) -> str:
    length = struct.unpack_from("<I", raw)[0]  # the contract's check: there are 4 bytes at least
    if length != len(raw) - 4:
        _refuse(f"{name} says that it has {length} bytes, and has {len(raw) - 4}")
    try:
        return raw[4:].decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"{name} is not UTF-8", error)


def _numbers(raw: bytes) -> list[int]:
    found: list[int] = np.frombuffer(raw, "<i4").tolist()
    return found
