"""The entry's calls to other stages, where Triton's own module is a small class: media tokens on a GPU cannot be had here."""

import importlib
import queue
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.media.video import Segment
from videollama_core.prompt import Prompt
from videollama_core.protocol.errors import ArtifactMismatch
from videollama_core.protocol.messages import ResolvedSampling
from videollama_server import installation as triton_installation

ANSWERS = {
    "prompt_vocab_size": np.array([[3]], np.int32),
    "media_hash": np.array([[2**63 + 1]], np.uint64),
    "perception_spans": np.array([1.0, 2.0, 3.0, 4.0]),
}


class Tensor:
    def __init__(self, name, array, on_gpu=False) -> None:
        self.name, self.array, self.on_gpu = name, array, on_gpu

    def is_cpu(self) -> bool:
        return not self.on_gpu

    def as_numpy(self) -> np.ndarray:
        assert not self.on_gpu, "Triton refuses to show a tensor of the GPU as an array"
        return self.array


class Response:
    def __init__(self, outputs=()) -> None:
        self.outputs = {tensor.name: tensor for tensor in outputs}

    def has_error(self) -> bool:
        return False


@pytest.fixture
def calls(monkeypatch):
    """The module, and every request that it sent; `perception` answers with a table that lies on the GPU or not."""
    sent, module = [], ModuleType("triton_python_backend_utils")

    class InferenceRequest:
        def __init__(self, model_name, requested_output_names, inputs, request_id="") -> None:
            self.inputs = {tensor.name: tensor for tensor in inputs}
            sent.append(self)

        def exec(self, decoupled=False):
            if decoupled:
                return iter([Response([Tensor("output_ids", np.array([[[7]]], np.int32))])])
            table = Tensor("prompt_embedding_table", np.zeros((1, 3, 4), np.float16), module.on_gpu)
            return Response([table, *(Tensor(name, array) for name, array in ANSWERS.items())])

    module.Tensor, module.InferenceRequest, module.on_gpu = Tensor, InferenceRequest, False
    module.get_output_tensor_by_name = lambda response, name: response.outputs.get(name)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("videollama_server.stages.python_backend", "videollama_server.stages.calls"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module("videollama_server.stages.calls")
    yield found, module, sent
    for name in ("videollama_server.stages.python_backend", "videollama_server.stages.calls"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_table_goes_to_the_language_model_from_where_it_lies(calls, on_gpu):
    found, module, sent = calls
    module.on_gpu = on_gpu
    stages = found.TritonStages(end_ids=[2], pad_id=None)
    seen = stages.perceive("video", [b"x"], Segment(), None)
    assert (seen.rows, seen.media_hash) == (3, 2**63 + 1)
    assert seen.spans == {"preprocess": (1.0, 2.0), "encoder": (3.0, 4.0)}
    prompt = Prompt(np.array([5, 1024, 1025, 1026], np.int32), text_tokens=1, media_tokens=3, media_start=1)
    sampling = ResolvedSampling(1, True, 1.0, 0, 1.0, 1.0, 0)
    assert stages.generate("1", prompt, seen, sampling).next(5) == [7]
    table = sent[-1].inputs["prompt_embedding_table"]
    assert table.on_gpu == on_gpu and (table is seen.table) == on_gpu
    assert table.array.shape == (1, 3, 4) and table.array.dtype == np.float16
    assert sent[-1].inputs["prompt_vocab_size"].as_numpy().tolist() == [[3]]


class LanguageModel(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The language model's part of a server; `known` opens when it may take a request in, after its stops have come."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue = queue.SimpleQueue()
        self.known, self.stops = threading.Event(), 0
        self._running: dict[str, threading.Event] = {}

    def ModelStreamInfer(self, request_iterator, context):  # gRPC's name
        for request in request_iterator:
            if any(tensor.name == "stop" for tensor in request.inputs):
                self.stops += 1
                if request.id in self._running:
                    self._running[request.id].set()
                else:
                    self.known.set()  # it has overtaken its request, which is let in now
                yield service_pb2.ModelStreamInferResponse()
                continue
            self.requests.put(request)
            assert self.known.wait(30)
            self._running[request.id] = threading.Event()
            found = service_pb2.ModelInferResponse(raw_output_contents=[np.array([7], np.int32).tobytes()])
            found.outputs.add(name="output_ids", datatype="INT32", shape=[1, 1, 1])
            yield service_pb2.ModelStreamInferResponse(infer_response=found)
            assert self._running[request.id].wait(30)
            yield service_pb2.ModelStreamInferResponse(error_message="Cancelled: the request was stopped")


@pytest.fixture
def language_model():
    server = grpc.server(ThreadPoolExecutor(4))
    found = LanguageModel()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(found, server)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(0).wait()


def ask(stages, seen=None):
    count = 0 if seen is None else seen.rows
    ids = np.array([5, *range(1024, 1024 + count)], np.int32)
    prompt = Prompt(ids, text_tokens=1, media_tokens=count, media_start=1)
    return stages.generate("17", prompt, seen, ResolvedSampling(100, True, 1.0, 0, 1.0, 1.0, 0))


def test_a_table_in_half_precision_goes_over_grpc_as_such(calls, language_model):
    """TensorRT-LLM's config types it FP16, and a request that says FP32 is refused."""
    found, _, _ = calls
    stages = found.TritonStages([2], None, language_model.address)
    language_model.known.set()
    generation = ask(stages, stages.perceive("video", [b"x"], Segment(), None))
    assert generation.next(30) == [7]
    request = language_model.requests.get()
    table = next(place for place, tensor in enumerate(request.inputs) if tensor.name == "prompt_embedding_table")
    assert request.inputs[table].datatype == "FP16" and list(request.inputs[table].shape) == [1, 3, 4]
    assert len(request.raw_input_contents[table]) == 3 * 4 * 2
    generation.stop()


def test_a_table_on_the_gpu_never_leaves_the_server(calls, language_model):
    found, module, sent = calls
    module.on_gpu = True
    stages = found.TritonStages([2], None, language_model.address)
    assert ask(stages, stages.perceive("video", [b"x"], Segment(), None)).next(30) == [7]
    assert "prompt_embedding_table" in sent[-1].inputs and language_model.requests.empty()


def test_a_stop_that_overtakes_its_request_is_sent_again(calls, language_model):
    """It was lost: the stage ends only ids that it knows, and the answer went on to its last token."""
    found, _, _ = calls
    generation = ask(found.TritonStages([2], None, language_model.address))
    language_model.requests.get(timeout=30)
    generation.stop()
    assert generation.next(30) == [7]
    with pytest.raises(found.VideoLlamaError, match="stopped"):
        generation.next(30)
    assert language_model.stops >= 2
    asked = language_model.stops
    generation.stop()
    assert language_model.stops == asked  # nothing is left to stop


@pytest.mark.parametrize(
    ("container", "is_refused"), [("26.06", True), ("26.07", False), ("26.10", False), (None, False)]
)
def test_tables_on_the_gpu_want_a_container_whose_stages_read_streams(container, is_refused, monkeypatch):
    monkeypatch.delenv(triton_installation.CONTAINER_VARIABLE, raising=False)
    if container:
        monkeypatch.setenv(triton_installation.CONTAINER_VARIABLE, container)
    if not is_refused:
        return triton_installation.check_gpu_tables()
    with pytest.raises(ArtifactMismatch, match=f"the container is {container}.*--media-token-memory cpu"):
        triton_installation.check_gpu_tables()
