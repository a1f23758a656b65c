"""The entry's calls to other stages, where Triton's own module is a small class: media tokens on a GPU cannot be had here."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest

from videollama_core.media.video import Segment
from videollama_core.prompt import Prompt
from videollama_core.protocol.messages import ResolvedSampling

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
