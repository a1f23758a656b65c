"""The parser of serialised requests agrees with protobuf, refuses invalid messages, and copies no data."""

import tracemalloc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from videollama_client.wire import build_ping, build_question
from videollama_core.protocol.errors import InvalidRequest, NotAllowed
from videollama_core.protocol.trace_context import CALLER
from videollama_server.endpoint.request_checks import _read, check_request

ENTRY = ("videollama2",)


@given(st.text(max_size=9), st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3), st.binary(max_size=300)), max_size=5))  # fmt: skip
def test_it_reads_what_protobuf_reads(name, tensors):
    request = service_pb2.ModelInferRequest(model_name=name, id="x")
    for tensor, shape, data in tensors:
        request.inputs.add(name=tensor, datatype="BYTES", shape=shape)
        request.raw_input_contents.append(data)
    parsed, sizes = _read(request.SerializeToString())
    assert sizes == [len(data) for _, _, data in tensors]
    assert parsed.model_name == name and list(parsed.inputs) == list(request.inputs)


@given(st.binary(max_size=400))
def test_noise_is_refused_or_is_a_request(data):
    try:
        check_request(data, ENTRY)
    except (InvalidRequest, NotAllowed):
        pass


@given(st.data())
def test_a_broken_request_is_never_read_differently_from_protobuf(data):
    """Two parsers of one message must not disagree: what passes here is what Triton sees."""
    whole = bytearray(build_question("Who?", "id", {"max_new_tokens": 3}).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours, sizes = _read(bytes(whole))
    except InvalidRequest:
        return
    try:
        parsed = service_pb2.ModelInferRequest.FromString(bytes(whole))
    except DecodeError:
        return
    assert ours.model_name == parsed.model_name and ours.id == parsed.id
    assert [one.name for one in ours.inputs] == [one.name for one in parsed.inputs]
    assert sizes == [len(one) for one in parsed.raw_input_contents]


def test_questions_and_pings_of_our_client_pass():
    question = build_question("Who?", "id", {"video": b"x" * 1000, "start": 1.0, "stop": ["a", "b"], "seed": 2**64 - 1})
    assert not check_request(question.SerializeToString(), ENTRY).is_ping
    assert check_request(build_ping().SerializeToString(), ENTRY).is_ping


def test_an_input_given_twice_and_an_unknown_output_are_typed_errors():
    """Triton refuses them too, but its text names no kind."""
    twice, unknown = (build_question("Who?", "id", {"seed": 1}) for _ in range(2))
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    unknown.outputs.add(name="text")
    assert check_request(unknown.SerializeToString(), ENTRY)
    unknown.outputs.add(name="bogus")
    for request, reason in (twice, "messages is given twice"), (unknown, "no output 'bogus'; it gives text"):
        with pytest.raises(InvalidRequest, match=reason):
            check_request(request.SerializeToString(), ENTRY)


def test_no_request_can_name_its_own_caller():
    question = build_question("Who?", "id", {"image": b"x"})
    question.parameters[CALLER].string_param = "0123456789abcdef"
    with pytest.raises(NotAllowed, match="x-vl2-caller"):
        check_request(question.SerializeToString(), ENTRY)


def test_data_inside_the_tensors_counts_towards_the_size():
    request = service_pb2.ModelInferRequest(model_name="videollama2")
    tensor = request.inputs.add(name="question", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"Who?")
    assert check_request(request.SerializeToString(), ENTRY).model == "videollama2"
    tensor.shape[0] = 2**62
    with pytest.raises(InvalidRequest, match="shape"):
        check_request(request.SerializeToString(), ENTRY)
    tensor.shape[0] = 1
    request.raw_input_contents.append(b"\4\0\0\0Who?")
    with pytest.raises(InvalidRequest, match="in contents and in raw_input_contents"):
        check_request(request.SerializeToString(), ENTRY)


def test_half_precision_tables_pass_where_stages_are_exposed():
    request = service_pb2.ModelInferRequest(model_name="tensorrt_llm")
    request.inputs.add(name="prompt_embedding_table", datatype="FP16", shape=[1, 2, 4])
    request.raw_input_contents.append(bytes(16))
    assert check_request(request.SerializeToString(), ("tensorrt_llm",)).model == "tensorrt_llm"


def test_large_media_are_not_copied():
    media = bytes(2**26)
    message = build_question("Who?", "id", {"video": media}).SerializeToString()
    tracemalloc.start()
    check_request(message, ENTRY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
