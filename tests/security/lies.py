"""Invalid server messages, by what is wrong with them."""

import json
import struct

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from security.lying_server import (
    FIRST,
    LAST,
    LAST_WITH,
    SUMMARY,
    TEXT,
    USAGE,
    aborted,
    endless,
    error,
    raw,
    silent,
    summary,
    whole,
)
from wire_messages import message

CODE = grpc.StatusCode


def packed(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(text) if length is None else length) + text


def ids(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def with_text(*contents: tuple) -> tuple:
    return FIRST, TEXT, raw(*contents), LAST


LIES = {
    # outputs
    "more outputs than contents": whole(*with_text(("text", "BYTES", [1], packed(b"a")), ("summary", "BYTES", [1], packed(b"a")))[:2], raw(("text", "BYTES", [1], packed(b"a")), contents=0)),
    "more contents than outputs": whole(FIRST, service_pb2.ModelStreamInferResponse(infer_response=service_pb2.ModelInferResponse(raw_output_contents=[b"a"]))),
    "an output twice": whole(*with_text(("text", "BYTES", [1], packed(b"a")), ("text", "BYTES", [1], packed(b"b")))),
    "text of another type": whole(*with_text(("text", "INT32", [1], ids(1)))),
    "text of no type": whole(*with_text(("text", "", [1], packed(b"a")))),
    "ids as FP32": whole(*with_text(("output_ids", "FP32", [1], ids(1)))),
    "ids as STRING": whole(*with_text(("output_ids", "BYTES", [1], packed(b"a")))),
    "text of two dimensions": whole(*with_text(("text", "BYTES", [1, 1], packed(b"a")))),
    "two texts": whole(*with_text(("text", "BYTES", [2], packed(b"a") + packed(b"b")))),
    "no dimensions": whole(*with_text(("text", "BYTES", [], packed(b"a")))),
    "ids of 2^62": whole(*with_text(("output_ids", "INT32", [2**62], ids(1)))),
    "ids of -1": whole(*with_text(("output_ids", "INT32", [-1], ids(1)))),
    "ids of 10,000 dimensions": whole(*with_text(("output_ids", "INT32", [1] * 10_000, ids(1)))),
    "fewer ids than their shape": whole(*with_text(("output_ids", "INT32", [3], ids(1)))),
    "more ids than their shape": whole(*with_text(("output_ids", "INT32", [1], ids(1, 2)))),
    "ids cut off": whole(*with_text(("output_ids", "INT32", [1], b"\1\2\3"))),
    "no content": whole(*with_text(("text", "BYTES", [1], b""))),
    "a length of 3 bytes": whole(*with_text(("text", "BYTES", [1], b"\1\0\0"))),
    "text longer than it says": whole(*with_text(("text", "BYTES", [1], packed(b"abc", 1)))),
    "text shorter than it says": whole(*with_text(("text", "BYTES", [1], packed(b"abc", 100)))),
    "text of 4 GiB, it says": whole(*with_text(("text", "BYTES", [1], packed(b"abc", 2**32 - 1)))),
    "text that is not UTF-8": whole(*with_text(("text", "BYTES", [1], packed(b"\xff\xfe")))),
    "text with half a character": whole(*with_text(("text", "BYTES", [1], packed(b"\xed\xa0\x80")))),
    "a negative id": whole(*with_text(("output_ids", "INT32", [1], ids(-7)))),
    "text before any id": whole(FIRST, message(text="an answer"), LAST),
    # who answers
    "an answer to another request": whole(FIRST, raw(("text", "BYTES", [1], packed(b"a")), id="another")),
    "an answer of another model": whole(raw(("process", "BYTES", [1], packed(b"1")), model_name="ensemble")),
    "two processes": whole(FIRST, TEXT, message(process="2"), LAST),
    "a process without a name": whole(message(process="")),
    "a process of 100,000 letters": whole(message(process="a" * 100_000)),
    "a process of control characters": whole(message(process="\x1b[2J")),
    # the summary
    "summary: not JSON": whole(FIRST, TEXT, LAST_WITH("{")),
    "summary: empty": whole(FIRST, TEXT, LAST_WITH("")),
    "summary: a list": whole(FIRST, TEXT, LAST_WITH("[]")),
    "summary: a number": whole(FIRST, TEXT, LAST_WITH("7")),
    "summary: null": whole(FIRST, TEXT, LAST_WITH("null")),
    "summary: nested 30,000 deep": whole(FIRST, TEXT, LAST_WITH("[" * 30_000)),
    "summary: nested 100,000 deep": whole(FIRST, TEXT, LAST_WITH('{"a":' * 100_000)),
    "summary: a number of 5,000 digits": whole(FIRST, TEXT, LAST_WITH('{"usage": ' + "9" * 5000 + "}")),
    "summary: NaN": whole(FIRST, TEXT, summary(seconds={"total": float("nan")})),
    "summary: Infinity": whole(FIRST, TEXT, summary(seconds={"total": float("inf")})),
    "summary: 1e999": whole(FIRST, TEXT, LAST_WITH(json.dumps(SUMMARY).replace("0.1", "1e999"))),
    "summary: seconds as text": whole(FIRST, TEXT, summary(seconds={"total": "long"})),
    "summary: seconds as a list": whole(FIRST, TEXT, summary(seconds=[1])),
    "summary: seconds below 0": whole(FIRST, TEXT, summary(seconds={"total": -1})),
    "summary: no seconds": whole(FIRST, TEXT, summary(seconds=None)),
    "summary: no usage": whole(FIRST, TEXT, summary(usage=None)),
    "summary: no finish_reason": whole(FIRST, TEXT, summary(finish_reason=None)),
    "summary: another finish_reason": whole(FIRST, TEXT, summary(finish_reason="bored")),
    "summary: finish_reason as an object": whole(FIRST, TEXT, summary(finish_reason={})),
    "summary: usage as text": whole(FIRST, TEXT, summary(usage="much")),
    "summary: usage without tokens": whole(FIRST, TEXT, summary(usage={})),
    "summary: usage below 0": whole(FIRST, TEXT, summary(usage=USAGE | {"prompt_tokens": -1})),
    "summary: more cached tokens than the prompt": whole(FIRST, TEXT, summary(usage=USAGE | {"cached_tokens": 4})),
    "summary: cached tokens as text": whole(FIRST, TEXT, summary(usage=USAGE | {"cached_tokens": "all"})),
    "summary: usage as a fraction": whole(FIRST, TEXT, summary(usage=USAGE | {"media_tokens": 0.5})),
    "summary: usage as true": whole(FIRST, TEXT, summary(usage=USAGE | {"prompt_tokens": True})),
    "summary: more tokens than ids": whole(FIRST, TEXT, summary(usage=USAGE | {"completion_tokens": 3})),
    "summary: fewer tokens than ids": whole(FIRST, TEXT, summary(usage=USAGE | {"completion_tokens": 1})),
    "summary: frames as text": whole(FIRST, TEXT, summary(frames="all")),
    "summary: a frame below 0": whole(FIRST, TEXT, summary(frames=[{"index": -1, "seconds": 0}])),
    "summary: a frame without a time": whole(FIRST, TEXT, summary(frames=[{"index": 1}])),
    "summary: 1,000 frames": whole(FIRST, TEXT, summary(frames=[{"index": 1, "seconds": None}] * 1000)),
    "summary: 10^4000 tokens": whole(FIRST, TEXT, summary(usage=USAGE | {"completion_tokens": 10**4000})),
    "summary: 1 MB": whole(FIRST, TEXT, summary(more="a" * 10**6)),
    # the order and the end
    "the last message first": whole(LAST, FIRST, TEXT),
    "a piece lost": whole(FIRST, LAST),
    "a piece twice": whole(FIRST, TEXT, TEXT, LAST),
    "a piece after the end": whole(FIRST, TEXT, LAST, TEXT),
    "the end twice": whole(FIRST, TEXT, LAST, LAST),
    "an error after the end": whole(FIRST, TEXT, LAST, error("StageFailed: after all")),
    "pieces without an end after the end": lambda *given: (one for part in ((FIRST, TEXT, LAST), endless(TEXT)(*given)) for one in part),
    "nothing at all": whole(),
    "closed after the first message": whole(FIRST),
    "closed after a piece": whole(FIRST, TEXT),
    "tokens without an end": endless(message(text="a", output_ids=[5] * 100)),
    "text without an end": endless(message(text="a" * 10**6, output_ids=[5])),
    "messages without content, without an end": endless(raw()),
    "the first message again and again": endless(FIRST),
    "a message of 17 MB": whole(FIRST, message(text="a" * (17 * 2**20), output_ids=[5])),
    # errors
    "error of an unknown kind": whole(error("Kaboom: all is lost")),
    "error of a kind of Python": whole(error("KeyError: 'summary'")),
    "error of control characters": whole(error("StageFailed: \x1b]0;title\x07\x1b[31m\x00")),
    "error of 10 MB": whole(error("x" * 10_000_000)),
    "error of a lone kind": whole(error("UnreadableMedia: ")),
    "error of a client's kind": whole(error("DeadlineExceeded: who knows")),
    "error in the midst": whole(FIRST, TEXT, error("Overloaded: not any more")),
    "a stage that restarts for ever": whole(error("StageRestarting: soon")),
    "an error, and on it goes": lambda *given: (one for part in ((error("StageFailed: broken"),), endless(TEXT)(*given)) for one in part),
    # bytes that are no message
    "no protobuf": whole(b"\xff\xff\xff\xff"),
    "half a message": whole(TEXT.SerializeToString()[:-3]),
    "error_message that is not UTF-8": whole(b"\x0a\x02\xff\xfe"),
    "an output's name that is not UTF-8": whole(b"\x12\x08\x2a\x06\x0a\x04\xff\xfe\xfd\xfc"),
    # gRPC
    "not implemented": aborted(CODE.UNIMPLEMENTED, "what is that?"),
    "internal error in the midst": aborted(CODE.INTERNAL, "", FIRST, TEXT),
    "unknown error with odd characters": aborted(CODE.UNKNOWN, "\x1b[31m ü 🎉"),
    "unavailable in the midst": aborted(CODE.UNAVAILABLE, "going", FIRST, TEXT),
    "cancelled by the server": aborted(CODE.CANCELLED, "no", FIRST),
    "deadline exceeded, without one": aborted(CODE.DEADLINE_EXCEEDED, "no", FIRST),
    "data loss": aborted(CODE.DATA_LOSS, "KeyError: x", FIRST),
    "not allowed": aborted(CODE.PERMISSION_DENIED, ""),
    "silence, while pings are answered": silent,
}  # fmt: skip
PINGS = {
    "ping: no process": whole(raw()),
    "ping: another process": whole(message(process="2")),
    "ping: nothing": whole(),
    "ping: an answer": whole(FIRST, TEXT, LAST),
    "ping: no protobuf": whole(b"\xff\xff"),
    "ping: without an end": endless(FIRST),
    "ping: an error": whole(error("Kaboom: x")),
    "ping: not implemented": aborted(CODE.UNIMPLEMENTED, ""),
}
