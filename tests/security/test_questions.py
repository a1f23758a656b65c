"""Hostile questions and tensors through a running server, beside a caller whose answers must not change."""

import json
import struct
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from conftest import MEDIA
from service.servers import serving, unchanged_neighbour
from videollama_core.protocol.contract import STAGES
from videollama_core.protocol.errors import InvalidRequest, PromptTooLong, from_wire
from videollama_core.protocol.limits import MESSAGES, QUESTION_CHARACTERS

AREA = "questions"
VARIANT = "qwen2-clip-8f"
SLOWEST_SECONDS, MOST_MEGABYTES = 20, 1024  # the slowest tokenises 1 MB of emoji, in 1 s on a quiet machine
NEIGHBOUR = {"video": MEDIA / "vfr_80x60.mp4", "max_new_tokens": 30, "temperature": 2.0, "seed": 5}


def strings(*items: bytes) -> tuple[str, list[int], bytes]:
    return "BYTES", [len(items)], b"".join(struct.pack("<I", len(item)) + item for item in items)


def numbers(datatype: str, dtype: type, *values: float) -> tuple[str, list[int], bytes]:
    return datatype, [len(values)], np.array(values, dtype).tobytes()


def shaped(datatype: str, shape: list[int], data: bytes = b"") -> tuple[str, list[int], bytes]:
    return datatype, shape, data


def one(value: int) -> tuple[str, list[int], bytes]:
    return shaped("INT32", [1, 1], struct.pack("<i", value))


def turns(count: int, content: str = "a") -> bytes:
    return json.dumps([{"role": "user", "content": content}] * count).encode()


A = {"question": strings(b"a")}
IDS = {"input_ids": shaped("INT32", [1, 2], struct.pack("<2i", 5, 1024)), "input_lengths": one(2), "request_output_len": one(1)}  # fmt: skip
NAN_TABLE = shaped("FP32", [1, 1, 56], np.full(56, np.nan, np.float32).tobytes())
LONG = b"word " * (QUESTION_CHARACTERS.value // 5)
CASES = {
    "question of 10 MB": ("videollama2", {"question": strings(b"word " * 2_000_000)}),
    "question of 40 MB": ("videollama2", {"question": strings(b"word " * 8_000_000)}),
    "question of as many characters as the limit": ("videollama2", {"question": strings(LONG)}),
    "question of as many emoji as the limit": ("videollama2", {"question": strings("\U0001f600".encode() * QUESTION_CHARACTERS.value)}),
    "one word of as many letters as the limit": ("videollama2", {"question": strings(b"a" * QUESTION_CHARACTERS.value)}),
    "200,000 messages": ("videollama2", {"messages": strings(turns(200_000))}),
    "as many messages as the limit": ("videollama2", {"messages": strings(turns(MESSAGES.value, "a" * 200))}),
    "JSON nested 100,000 deep": ("videollama2", {"messages": strings(b"[" * 100_000)}),
    "a number of 5,000 digits as messages": ("videollama2", {"messages": strings(b"[" + b"9" * 5000 + b"]")}),
    "NaN as messages": ("videollama2", {"messages": strings(b"[NaN]")}),
    "a lone surrogate": ("videollama2", {"messages": strings(b'[{"role": "user", "content": "\\ud800"}]')}),
    "a role of 2 MB": ("videollama2", {"messages": strings(b'[{"role": "' + b"a" * 2_000_000 + b'", "content": ""}]')}),
    "a media kind of 10 MB": ("videollama2", A | {"media": strings(b"x"), "media_kind": strings(b"a" * 10_000_000)}),
    "start at 1e308 seconds": ("videollama2", A | {"media": strings(b"x"), "media_kind": strings(b"video"), "start": numbers("FP64", np.float64, 1e308)}),
    "10,001 files": ("videollama2", A | {"media": strings(*[b"x"] * 10_001), "media_kind": strings(b"frames")}),
    "17 stop strings": ("videollama2", A | {"stop": strings(*[b"a"] * 17)}),
    "stop string of 10 MB": ("videollama2", A | {"stop": strings(b"a" * 10_000_000)}),
    "temperature not a number": ("videollama2", A | {"temperature": numbers("FP32", np.float32, np.nan)}),
    "prompt: 2,147,483,647 media tokens": ("prompt", A | {"media_kind": strings(b"video"), "prompt_vocab_size": one(2**31 - 1), "media_hash": shaped("UINT64", [1, 1], b"\1" * 8)}),
    "prompt: -1 media tokens": ("prompt", A | {"media_kind": strings(b"video"), "prompt_vocab_size": one(-1)}),
    "prompt: question of 10 MB": ("prompt", {"question": strings(b"word " * 2_000_000)}),
    "encoder: frames of 20,000 x 20,000 without data": ("encoder", {"frames": shaped("UINT8", [8, 20_000, 20_000, 3])}),
    "encoder: frames of 2^32 x 2^32 without data": ("encoder", {"frames": shaped("UINT8", [1, 2**32, 2**32, 3])}),
    "encoder: frames of 1,000 x 1,000": ("encoder", {"frames": shaped("UINT8", [8, 1000, 1000, 3], bytes(24_000_000))}),
    "tensorrt_llm: 2^62 ids without data": ("tensorrt_llm", IDS | {"input_ids": shaped("INT32", [1, 2**62])}),
    "tensorrt_llm: table that is not a number": ("tensorrt_llm", IDS | {"prompt_embedding_table": NAN_TABLE, "prompt_vocab_size": one(1)}),
    "tensorrt_llm: table of 2,147,483,647 rows": ("tensorrt_llm", IDS | {"prompt_embedding_table": NAN_TABLE, "prompt_vocab_size": one(2**31 - 1)}),
    "tensorrt_llm: 300,000 ids": ("tensorrt_llm", IDS | {"input_ids": shaped("INT32", [1, 300_000], bytes(1_200_000))}),
    "tensorrt_llm: 2,147,483,647 new tokens": ("tensorrt_llm", IDS | {"request_output_len": one(2**31 - 1)}),
    "detokenize: an id below 0": ("detokenize", {"output_ids": shaped("INT32", [1, 1, 1], b"\xff" * 4), "sequence_length": one(1)}),
    "detokenize: a length beyond the ids": ("detokenize", {"output_ids": shaped("INT32", [1, 1, 1], bytes(4)), "sequence_length": one(2**31 - 1)}),
}  # fmt: skip
REQUEST_IDS = {"a request id of 10,000 characters": "a" * 10_000, "a request id of two lines": "1\nERROR all is lost"}


@pytest.fixture(scope="module")
def server(bundle_of, tmp_path_factory):
    with serving(bundle_of(VARIANT), tmp_path_factory.mktemp("questions") / "server.log", "--expose-stages") as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def neighbour(server):
    """Asks from the first case to the last; every answer is the one it had alone, and no stage's process is replaced."""
    processes = {stage: server.pids(stage) for stage in STAGES}
    with unchanged_neighbour(server, "Tell me all", **NEIGHBOUR):
        yield
    assert {stage: server.pids(stage) for stage in STAGES} == processes


def ask(server, model: str, tensors: dict[str, tuple[str, list[int], bytes]], request_id: str = "") -> str:
    """The error of a request with any shapes and data; "" where it was answered."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, (datatype, shape, data) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            if not STAGES[model].decoupled:
                stub.ModelInfer(request, timeout=60)
                return ""
            messages = [message.error_message for message in stub.ModelStreamInfer(iter([request]), timeout=60)]
            return next(filter(None, messages), "")
        except grpc.RpcError as error:
            return error.details()


class Memory:
    """Peak memory of a stage's processes during the block, in MB above the start."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        self._before = [self._read(pid, "VmRSS") for pid in pids]

    @staticmethod
    def _read(pid: int, name: str) -> float:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

    def peak(self) -> float:
        return max(self._read(pid, "VmHWM") - before for pid, before in zip(self._pids, self._before, strict=True))


def refused(server, case_table, name, model, tensors, request_id="") -> str:
    memory, began = Memory(server.pids(model)), time.monotonic()
    message = ask(server, model, tensors, request_id)
    seconds, megabytes = time.monotonic() - began, memory.peak()
    error = from_wire(message)
    case_table.add(name, error.kind, seconds, megabytes)
    assert isinstance(error, InvalidRequest) and len(message) < 1000, message[:1000]
    assert seconds < SLOWEST_SECONDS and megabytes < MOST_MEGABYTES
    return message


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name, server, case_table):
    model, tensors = CASES[name]
    message = refused(server, case_table, name, model, tensors)
    assert isinstance(from_wire(message), PromptTooLong) == ("as the limit" in name or "7 media tokens" in name)


@pytest.mark.parametrize("name", REQUEST_IDS)
def test_a_request_id_is_one_short_line(name, server, case_table):
    refused(server, case_table, name, "videollama2", A, REQUEST_IDS[name])
    assert "ERROR all is lost" not in server.log.read_text("utf-8", "replace")
