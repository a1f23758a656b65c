"""Which calls are offered to whom, and what other users of the machine can see."""

import os
import stat
import time
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_client import Client, NotAllowed
from videollama_client.transport import translated
from videollama_client.wire import build_question
from videollama_core.protocol.contract import MEDIA_HEADER, STAGES
from videollama_core.protocol.errors import InvalidRequest, from_wire

AREA = "endpoints"
SERVICE = "/inference.GRPCInferenceService/"
pytestmark = pytest.mark.usefixtures("still_answers")


@pytest.fixture
def server(default_server):
    return default_server


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


def refusal(call, case_table, case):
    """The code with which a call is refused."""
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        call()
    seconds = time.monotonic() - began
    error = refused.value
    kind = type(from_wire(error.details())).__name__ if ": " in error.details()[:20] else "by gRPC itself"
    case_table.add(case, f"{kind}, {error.code().name}", seconds)
    assert seconds < 5
    return error.code(), error.details()


CLOSED = [
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "ModelStatistics",
    "TraceSetting",
    "LogSettings",
]


@pytest.mark.parametrize("name", CLOSED)
def test_administrative_calls_are_refused(name, channel, case_table):
    call = channel.unary_unary(SERVICE + name)
    code, words = refusal(lambda: call(b"", timeout=5), case_table, f"call {name}")
    assert code is grpc.StatusCode.PERMISSION_DENIED and "is not offered here" in words


@pytest.mark.parametrize("path", ["/inference.GRPCInferenceService/Nothing", "/grpc.reflection.v1.Nothing/Call", "/x"])
def test_unknown_calls_are_refused(path, channel, case_table):
    code, _ = refusal(lambda: channel.unary_unary(path)(b"x" * 10_000, timeout=5), case_table, f"call {path}")
    assert code is grpc.StatusCode.PERMISSION_DENIED


def infer(model, **tensors):
    """A request with tensors of name=(datatype, shape, bytes or None)."""
    request = service_pb2.ModelInferRequest(model_name=model, id="hostile")
    for name, (datatype, shape, data) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        if data is not None:
            request.raw_input_contents.append(data)
    return request


@pytest.mark.parametrize("stage", [*sorted(set(STAGES) - {"videollama2"}), "nothing"])
@pytest.mark.parametrize("name", ["ModelInfer", "ModelStreamInfer"])
def test_stages_are_not_reachable(stage, name, channel, case_table):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = infer(stage, input_ids=("INT32", [1, 2**62], None))
    asked = {
        "ModelInfer": lambda: stub.ModelInfer(request, timeout=5),
        "ModelStreamInfer": lambda: list(stub.ModelStreamInfer(iter([request]), timeout=5)),
    }
    code, words = refusal(asked[name], case_table, f"{name} of {stage}")
    assert code is grpc.StatusCode.PERMISSION_DENIED and "videollama2" in words
    for about in (stub.ModelMetadata, stub.ModelConfig, stub.ModelReady):
        kind = {stub.ModelMetadata: service_pb2.ModelMetadataRequest, stub.ModelConfig: service_pb2.ModelConfigRequest}
        with pytest.raises(grpc.RpcError, match="not offered"):
            about(kind.get(about, service_pb2.ModelReadyRequest)(name=stage), timeout=5)


QUESTION = ("BYTES", [1], b"\x04\0\0\0Who?")
TENSORS = {
    "2^62 values without data": {"question": QUESTION, "max_new_tokens": ("INT32", [2**62], b"")},
    "2^62 strings without data": {"media": ("BYTES", [2**62], b""), "media_kind": ("BYTES", [1], b"\5\0\0\0video")},
    "no shape": {"question": ("BYTES", [], b"\x04\0\0\0Who?")},
    "negative shape": {"question": ("BYTES", [-1], b"\x04\0\0\0Who?")},
    "shape of nine dimensions": {"question": ("BYTES", [1] * 9, b"\x04\0\0\0Who?")},
    "too little data": {"question": QUESTION, "seed": ("UINT64", [1], b"\0")},
    "too much data": {"question": QUESTION, "seed": ("UINT64", [1], bytes(16))},
    "another type": {"question": ("INT32", [1], bytes(4))},
    "unknown tensor": {"question": QUESTION, "colour": ("BYTES", [1], b"\3\0\0\0red")},
    "more data than tensors": {"question": QUESTION, "seed": ("UINT64", [1], None)},
    "question of 10 MB": {"question": ("BYTES", [1], (10**7).to_bytes(4, "little") + b"x" * 10**7)},
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_checked_before_triton_sees_them(case, channel, case_table):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    began = time.monotonic()
    (answer,) = stub.ModelStreamInfer(iter([infer("videollama2", **TENSORS[case])]), timeout=5)
    seconds = time.monotonic() - began
    assert isinstance(from_wire(answer.error_message), InvalidRequest), answer.error_message
    case_table.add(f"tensor: {case}", "InvalidRequest", seconds)
    assert seconds < 1


def test_a_tensor_in_shared_memory_is_refused(channel, case_table):
    request = infer("videollama2", question=("BYTES", [1], None))
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    code, _ = refusal(lambda: stub.ModelInfer(request, timeout=5), case_table, "tensor in shared memory")
    assert code is grpc.StatusCode.PERMISSION_DENIED


MESSAGES = {
    "noise": b"\xff" * 100,
    "a field that ends behind the message": b"\x0a\xff\xff\xff\xff\x0f",
    "a number of 11 bytes": b"\x08" + b"\xff" * 11,
    "a group": b"\x0b" * 50,
    "5,000 empty tensors": b"\x3a\x00" * 5000,
    "5 MB of names": b"\x0a\x0bvideollama2" + b"\x2a\xc0\xc4\xb1\x02" + b"\x0a\xbc\xc4\xb1\x02" + b"x" * 5_005_884,
}


@pytest.mark.parametrize("case", MESSAGES)
def test_invalid_messages_are_refused(case, channel, case_table):
    began = time.monotonic()
    (answer,) = channel.stream_stream(f"{SERVICE}ModelStreamInfer")(iter([MESSAGES[case]]), timeout=5)
    seconds = time.monotonic() - began
    error = from_wire(service_pb2.ModelStreamInferResponse.FromString(answer).error_message)
    assert isinstance(error, InvalidRequest)
    case_table.add(f"message: {case}", "InvalidRequest", seconds)


def test_a_refused_request_does_not_end_its_neighbour_on_the_same_stream(channel):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    good = build_question("Who?", "good", {"max_new_tokens": 3})
    bad = infer("videollama2", question=("INT32", [1], bytes(4)))
    answers = list(stub.ModelStreamInfer(iter([bad, good, bad]), timeout=20))
    assert sum(bool(answer.error_message) for answer in answers) == 2
    assert any("summary" in [one.name for one in answer.infer_response.outputs] for answer in answers)


def test_a_compressed_message_is_not_unpacked(server, case_table):
    """300 MB of zeros are 300 kB."""
    with grpc.insecure_channel(server.grpc, compression=grpc.Compression.Gzip) as channel:
        call = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
        asked = lambda: list(call(iter([bytes(300_000_000)]), timeout=10))  # noqa: E731
        code, _ = refusal(asked, case_table, "message compressed by gzip")
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_headers_of_100_kb(channel, case_table):
    call = channel.unary_unary(f"{SERVICE}ServerLive")
    big = (("x", "y" * 100_000),)
    code, _ = refusal(lambda: call(b"", metadata=big, timeout=5), case_table, "headers of 100 kB")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("value", ["", "0" * 64, "x" * 4000, 'a, b; c="d"'])
def test_the_media_header_is_only_for_balancers(channel, value):
    """A false header, or one of a thousand words, changes no answer."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = build_question("Who?", "id", {"max_new_tokens": 3})
    texts = []
    for metadata in ((), ((MEDIA_HEADER, value), (MEDIA_HEADER, "twice"), (MEDIA_HEADER + "-bin", bytes(range(256))))):
        answers = list(stub.ModelStreamInfer(iter([request]), timeout=20, metadata=metadata))
        texts.append(
            b"".join(  # how many ids share a message is the moment's
                content
                for answer in answers
                for tensor, content in zip(
                    answer.infer_response.outputs, answer.infer_response.raw_output_contents, strict=True
                )
                if tensor.name == "output_ids"
            )
        )
    assert texts[0] == texts[1] != b""


# --- the machine ---


def listening_ports(pids) -> set[int]:
    """TCP ports on which processes listen."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(entry))
            except OSError:
                pass
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


def descendants(pid: int) -> list[int]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                pids += [int(path.parent.name), *descendants(int(path.parent.name))]
        except OSError:
            pass
    return pids


def test_triton_listens_on_no_port_and_its_sockets_are_private(server):
    ours = descendants(server.process.pid)
    triton = [server.triton, *descendants(server.triton)]
    assert listening_ports(triton) == set()
    expected = {int(server.grpc.rpartition(":")[2]), int(server.metrics.split("/")[2].rpartition(":")[2])}
    assert listening_ports(ours) == expected
    words = Path(f"/proc/{server.triton}/cmdline").read_bytes().decode().split("\0")
    (target,) = (word.partition("=")[2] for word in words if word.startswith("--grpc-address="))
    folder = Path(target.removeprefix("unix:")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_ISSOCK((folder / "grpc:1").stat().st_mode)


def test_no_command_line_holds_a_secret(server):
    for pid in (server.process.pid, *descendants(server.process.pid)):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().lower()
        assert b"restricted" not in words and b"secret" not in words and b"admin" not in words


def test_the_client_reports_what_is_not_allowed(server):
    with Client(server.grpc) as client, pytest.raises(NotAllowed, match="not offered"):
        with translated(client.address):
            client._stub.ModelInfer(infer("encoder"), timeout=5)
