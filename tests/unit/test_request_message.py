"""Requests serialised by hand equal those that protobuf writes."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from videollama_core.protocol.contract import LANGUAGE_MODEL
from videollama_core.protocol.errors import InvalidRequest
from videollama_server.answers.request_message import read_message, request_message

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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_reading_returns_what_was_written(dtype):
    arrays = {
        "input_ids": np.array([[5, 6]], np.int32),
        "input_lengths": np.array([[2]], np.int32),
        "request_output_len": np.array([[9]], np.int32),
        "stop_words_list": np.zeros((1, 2, 0), np.int32),
        "seed": np.array([[2**64 - 1]], np.uint64),
        "temperature": np.array([[0.5]], np.float32),
        "streaming": np.array([[True]]),
        "prompt_embedding_table": np.random.default_rng(0).normal(size=(1, 3, 8)).astype(dtype),
    }
    message = request_message(LANGUAGE_MODEL, arrays, OUTPUTS, "é7", {"traceparent": "x"})
    request_id, parameters, inputs = read_message(LANGUAGE_MODEL, message)
    assert (request_id, parameters) == ("é7", {"traceparent": "x"})
    assert set(inputs) == {tensor.name for tensor in LANGUAGE_MODEL.inputs}
    for name, array in inputs.items():
        if name in arrays:
            assert array.dtype == arrays[name].dtype and array.flags.writeable
            np.testing.assert_array_equal(array, arrays[name])
        else:
            assert array is None


@pytest.mark.parametrize(
    ("name", "array"), [("input_ids", None), ("input_ids", np.zeros((1, 2, 3), np.int32)), ("surprise", np.zeros(1))]
)
def test_a_message_outside_the_contract_is_refused(name, array):
    arrays = {key: np.ones((1, 1), np.int32) for key in ("input_ids", "input_lengths", "request_output_len")}
    message = service_pb2.ModelInferRequest()
    arrays[name] = array
    for key, values in arrays.items():
        if values is not None:
            message.inputs.add(name=key, datatype="INT32", shape=values.shape)
            message.raw_input_contents.append(values.tobytes())
    with pytest.raises(InvalidRequest, match=name):
        read_message(LANGUAGE_MODEL, message.SerializeToString())
