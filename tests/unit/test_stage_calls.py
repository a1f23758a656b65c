"""The entry's calls to other stages, where Triton's own module is a small class: media tokens on a GPU cannot be had here."""

import importlib
import queue
import subprocess
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
from videollama_core.protocol.errors import StageFailed
from videollama_core.protocol.messages import ResolvedSampling
from videollama_server.answers.known_media import Media
from videollama_server.direct.listener import DirectListener
from videollama_server.direct.request import DirectRequest
from videollama_server.sandbox.callers import FOLDER_VARIABLE

ANSWERS = {
    "prompt_vocab_size": np.array([[3]], np.int32),
    "media_hash": np.array([[2**63 + 1]], np.uint64),
    "perception_spans": np.array([1.0, 2.0, 3.0, 5.0]),
    "preprocess_span": np.array([1.0, 2.0]),
    "frame_index": np.array([0, 4, 8, -1]),
    "frame_time": np.array([0.0, np.nan, np.inf, 0.0]),
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
    """The module, and every request that it sent; `perception` answers with a table in GPU or CPU memory."""
    sent, module = [], ModuleType("triton_python_backend_utils")

    class InferenceRequest:
        def __init__(self, model_name, requested_output_names, inputs, request_id="") -> None:
            self.inputs = {tensor.name: tensor for tensor in inputs}
            sent.append(self)

        def exec(self, decoupled=False):
            if decoupled:
                first, more = (Tensor("output_ids", np.array([[[number]]], np.int32)) for number in (7, 8))
                return iter([Response([first, Tensor("kv_cache_reused_blocks", np.array([[40]]))]), Response([more])])
            table = Tensor("prompt_embedding_table", np.zeros((1, 3, 4), np.float16), module.on_gpu)
            return Response([table, *(Tensor(name, array) for name, array in ANSWERS.items())])

    module.Tensor, module.InferenceRequest, module.on_gpu = Tensor, InferenceRequest, False
    module.get_output_tensor_by_name = lambda response, name: response.outputs.get(name)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("videollama_server.stages.python_backend", "videollama_server.stages.calls"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    stage_calls = importlib.import_module("videollama_server.stages.calls")
    loops, begin = [], stage_calls.AnswerLoop
    monkeypatch.setattr(stage_calls, "AnswerLoop", lambda *where: loops.append(begin(*where)) or loops[-1])
    yield stage_calls, module, sent
    for loop in loops:
        loop.close()
    for name in ("videollama_server.stages.python_backend", "videollama_server.stages.calls"):
        sys.modules.pop(name, None)


class RecordingListener:
    """A listener; `next` returns the next event: ids, None for the end, or an error."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.on_ids = self.on_end = self.events.put
        self.cached_tokens: list[int] = []
        self.on_cached_tokens = self.cached_tokens.append

    def next(self):
        return self.events.get(timeout=30)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_table_is_passed_to_the_language_model_without_a_copy(calls, on_gpu):
    stage_calls, module, sent = calls
    module.on_gpu = on_gpu
    stages = stage_calls.TritonStages(end_ids=[2], pad_id=None)
    seen = stages.perceive(Media("video", [b"x"], Segment()), None, lambda: False)
    assert (seen.rows, seen.media_hash) == (3, 2**63 + 1)
    assert {stage: ended - began for stage, (began, ended) in seen.spans.items()} == {"preprocess": 1.0, "encoder": 2.0}
    prompt = Prompt(np.array([5, 1024, 1025, 1026], np.int32), text_tokens=1, media_tokens=3, media_start=1)
    sampling = ResolvedSampling(1, True, 1.0, 0, 1.0, 1.0, 0)
    listener = RecordingListener()
    stages.generate("1", prompt, seen, sampling, listener).start()
    assert [listener.next(), listener.next(), listener.next()] == [[7], [8], None] and listener.cached_tokens == [40]
    table = sent[-1].inputs["prompt_embedding_table"]
    assert table.on_gpu == on_gpu and (table is seen.table) == on_gpu
    assert table.array.shape == (1, 3, 4) and table.array.dtype == np.float16
    assert sent[-1].inputs["prompt_vocab_size"].as_numpy().tolist() == [[3]]


def test_the_encoder_is_called_until_it_returns_rows(calls, monkeypatch, tmp_path):
    """Later calls send only the caller's note: the stage already has the frames."""
    stage_calls, _, _ = calls
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "callers"))
    stages, rows, asked = stage_calls.TritonStages(end_ids=[2], pad_id=None), iter([0, 0, 3]), []

    def ask(stage, inputs):
        asked.append((stage.name, inputs))
        size = next(rows)
        table = np.zeros((1, size, 4), np.float32)
        answers = ANSWERS | {"prompt_vocab_size": np.array([[size]], np.int32), "prompt_embedding_table": table}
        return {name: Tensor(name, array) for name, array in answers.items()}

    monkeypatch.setattr(stage_calls, "_ask", ask)
    seen = stages.perceive(Media("video", [b"x"], Segment()), None, lambda: False)
    assert seen.rows == 3 and seen.table.shape == (1, 3, 4) and [frame.index for frame in seen.frames_seen] == [0, 4, 8]
    assert [name for name, _ in asked] == ["perception", "encoder", "encoder"]
    note = asked[0][1]["caller"]
    assert [inputs for _, inputs in asked[1:]] == [{"caller": note}] * 2 and len(note[0]) == 32


class LanguageModel(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The language model's part of a server; `known` opens when it may accept a request, after its stops have arrived."""

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
            response = service_pb2.ModelInferResponse(raw_output_contents=[np.array([7], np.int32).tobytes()])
            response.outputs.add(name="output_ids", datatype="INT32", shape=[1, 1, 1])
            if "kv_cache_reused_blocks" in [output.name for output in request.outputs]:
                response.outputs.add(name="kv_cache_reused_blocks", datatype="INT32", shape=[1, 1])
                response.raw_output_contents.append(np.array([40], np.int32).tobytes())
            yield service_pb2.ModelStreamInferResponse(infer_response=response)
            assert self._running[request.id].wait(30)
            yield service_pb2.ModelStreamInferResponse(error_message="Cancelled: the request was stopped")


@pytest.fixture
def language_model():
    server = grpc.server(ThreadPoolExecutor(4))
    model = LanguageModel()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(model, server)
    model.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield model
    server.stop(0).wait()


GREEDY = ResolvedSampling(100, True, 1.0, 0, 1.0, 1.0, 0)


def ask(stages, seen=None, sampling=GREEDY):
    count = 0 if seen is None else seen.rows
    ids = np.array([5, *range(1024, 1024 + count)], np.int32)
    prompt = Prompt(ids, text_tokens=1, media_tokens=count, media_start=1)
    listener = RecordingListener()
    generation = stages.generate("17", prompt, seen, sampling, listener)
    generation.start()
    return generation, listener


def test_the_frames_of_a_video_and_no_padding(calls):
    """A time that a damaged file gives as NaN or omits is not a JSON number."""
    module, _, _ = calls
    stages = module.TritonStages([2], 0)
    seen = stages.perceive(Media("video", [b"x"], Segment()), None, lambda: False)
    assert [(frame.index, frame.seconds) for frame in seen.frames_seen] == [(0, 0.0), (4, None), (8, None)]


def test_a_half_precision_table_is_sent_over_grpc_as_fp16(calls, language_model):
    """TensorRT-LLM's config types it FP16, and a request that says FP32 is refused."""
    stage_calls, _, _ = calls
    stages = stage_calls.TritonStages([2], None, language_model.address)
    language_model.known.set()
    generation, listener = ask(stages, stages.perceive(Media("video", [b"x"], Segment()), None, lambda: False))
    assert listener.next() == [7] and listener.cached_tokens == [40]
    request = language_model.requests.get()
    table = next(place for place, tensor in enumerate(request.inputs) if tensor.name == "prompt_embedding_table")
    assert request.inputs[table].datatype == "FP16" and list(request.inputs[table].shape) == [1, 3, 4]
    assert len(request.raw_input_contents[table]) == 3 * 4 * 2
    stages.loop.call(generation.stop)


def test_only_options_that_may_change_the_answer_are_sent(calls, language_model):
    """Sampling needs its parameters, and media their hash; an engine applies the penalty to greedy answers, too."""
    stages = calls[0].TritonStages([2], None, language_model.address)
    language_model.known.set()
    chance = {"temperature", "runtime_top_p", "seed"}
    seen = stages.perceive(Media("video", [b"x"], Segment()), None, lambda: False)
    drawn = ResolvedSampling(100, False, 1.0, 0, 1.0, 1.0, 0)
    for media, sampling, left_out in (
        (None, GREEDY, chance | {"prompt_table_extra_ids"}),
        (seen, GREEDY, chance),
        (None, drawn, {"prompt_table_extra_ids"}),
        (seen, drawn, set()),
    ):
        generation, listener = ask(stages, media, sampling)
        assert listener.next() == [7]
        sent = {tensor.name for tensor in language_model.requests.get(timeout=30).inputs}
        assert (chance | {"prompt_table_extra_ids"}) - sent == left_out
        assert {"input_ids", "runtime_top_k", "repetition_penalty", "end_id", "stop_words_list"} < sent
        stages.loop.call(generation.stop)
        assert "stopped" in str(listener.next())


def test_a_table_on_the_gpu_never_leaves_the_server(calls, language_model):
    stage_calls, module, sent = calls
    module.on_gpu = True
    stages = stage_calls.TritonStages([2], None, language_model.address)
    _, listener = ask(stages, stages.perceive(Media("video", [b"x"], Segment()), None, lambda: False))
    assert listener.next() == [7]
    assert "prompt_embedding_table" in sent[-1].inputs and language_model.requests.empty()


def test_a_stop_that_overtakes_its_request_is_sent_again(calls, language_model):
    """It was lost: the stage ends only ids that it knows, and the answer ran to its last token."""
    stage_calls, _, _ = calls
    stages = stage_calls.TritonStages([2], None, language_model.address)
    generation, listener = ask(stages)
    language_model.requests.get(timeout=30)
    stages.loop.call(generation.stop)
    assert listener.next() == [7]
    assert "stopped" in str(listener.next())
    assert language_model.stops >= 2
    asked = language_model.stops
    stages.loop.call(generation.stop)
    stages.loop.close()
    assert language_model.stops == asked  # nothing is left to stop


def test_a_killed_language_model_ends_its_answers(calls, language_model):
    """Triton neither ends nor fails the calls of a process that was killed."""
    stage_calls, _, _ = calls
    child = subprocess.Popen(["sleep", "60"])
    stages = stage_calls.TritonStages([2], None, language_model.address)
    stages._process.find = lambda: child.pid
    generation, listener = ask(stages)
    language_model.known.set()
    assert listener.next() == [7]
    child.kill()
    child.wait()
    assert "its process died while it answered" in str(listener.next())
    stages.loop.call(generation.stop)
    stages.loop.close()
    language_model._running["17"].set()
    assert language_model.stops == 0 and listener.events.empty()


def test_without_a_server_the_answer_fails(calls, tmp_path):
    stage_calls, _, _ = calls
    _, listener = ask(stage_calls.TritonStages([2], None, f"unix:{tmp_path}/nobody"))
    assert isinstance(listener.next(), StageFailed)


def test_a_language_model_with_its_own_socket_is_called_there(calls, tmp_path):
    """Not over gRPC, where nothing listens here."""
    begun = queue.SimpleQueue()
    listener = DirectListener(str(tmp_path / "llm"), lambda message, _: begun.put(message), lambda _: None)
    ask(calls[0].TritonStages([2], None, f"unix:{tmp_path}/nobody", str(tmp_path / "llm")))
    assert DirectRequest.from_bytes(begun.get(timeout=30)).prompt.input_ids.tolist() == [5]
    listener.close()
