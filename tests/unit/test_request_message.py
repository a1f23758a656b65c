"""Requests serialised by hand equal those that protobuf writes."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from videollama_core.protocol.contract import LANGUAGE_MODEL
from videollama_server.answers.request_message import request_message

OUTPUTS = ["output_ids", "kv_cache_reused_blocks"]


def by_protobuf(arrays, request_id, parameters):
    request = service_pb2.ModelInferRequest(model_name="tensorrt_llm", id=request_id)
    for name, array in arrays.items():
        datatype = "FP16" if array.dtype == np.float16 else LANGUAGE_MODEL.input(name).wire_dtype
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name, text in parameters.items():
        request.parameters[name].string_param = text
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return request


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [1, 40, 70_000])
def test_a_request_equals_protobufs(rows, dtype):
    arrays = {
        "input_ids": np.array([[5, 6]], np.int32),
        "stop_words_list": np.zeros((1, 2, 0), np.int32),
        "streaming": np.array([[True]]),
        "prompt_embedding_table": np.random.default_rng(0).normal(size=(1, rows, 8)).astype(dtype),
        "prompt_vocab_size": np.array([[rows]], np.int32),
    }
    for number, parameters in ((7, {"traceparent": "x"}), (8, {})):  # the second of kept parts alone
        message = request_message(LANGUAGE_MODEL, arrays, OUTPUTS, f"é{number}", parameters)
        assert service_pb2.ModelInferRequest.FromString(message) == by_protobuf(arrays, f"é{number}", parameters)
