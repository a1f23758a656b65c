"""Any bytes on the wire as a question: parsed, or refused with a typed error before work is spent on it."""

import importlib
import json
import math
import sys
import time
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollama_core.media.video import Segment, candidate_range
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import BadSampling, BadSegment, InvalidRequest
from videollama_core.protocol.limits import LIMITS
from videollama_core.protocol.messages import as_conversation
from videollama_core.protocol.questions import check_request_id, read_messages, read_question, read_stop

FEW = settings(max_examples=150, derandomize=True, database=None, deadline=None)
MOST = {name: limit.value for name, limit in LIMITS.items()}


def message(content: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": content}


def dumped(*messages) -> bytes:
    return json.dumps(messages).encode()


REFUSED = {
    "a question one character too long": (read_question, b"a" * (MOST["question_characters"] + 1), "question_characters"),
    "a question of 10 MB": (read_question, b"word " * 2_000_000, "question_characters"),
    "a question of 10 MB of emoji": (read_question, "\U0001f600".encode() * 2_500_000, "question_characters"),
    "a question that is not UTF-8": (read_question, b"\xff\xfe", "not UTF-8"),
    "a surrogate as UTF-8": (read_question, b"\xed\xa0\x80", "not UTF-8"),
    "200,000 messages": (read_messages, dumped(*[message("a")] * 200_000), "messages_bytes"),
    "one message too many": (read_messages, dumped(*[message("a")] * (MOST["messages"] + 1)), "the limit is 1024"),
    "long together": (read_messages, dumped(*[message("a" * 1000)] * 300), "question_characters"),
    "nested 100,000 deep": (read_messages, b"[" * 100_000 + b"]" * 100_000, 'expected {'),
    "objects nested 100,000 deep": (read_messages, b'{"a":' * 100_000, 'expected ['),
    "a number of 5,000 digits": (read_messages, b"[" + b"9" * 5000 + b"]", "found '99999"),
    "a number of 2 million digits": (read_messages, b"9" * 2_000_000, "found '99999"),
    "1e999": (read_messages, b"[1e999]", "found '1e999]'"),
    "NaN": (read_messages, b"[NaN]", "found 'NaN]'"),
    "a lone surrogate": (read_messages, b'[{"role": "user", "content": "a\\ud800"}]', "lone surrogate"),
    "a lone surrogate in a role": (read_messages, b'[{"role": "\\ud800", "content": "a"}]', "has role"),
    "a million empty lists": (read_messages, b"[" + b"[]," * 600_000 + b"[]]", "found '[],"),
    "a key of 2 MB": (read_messages, b'[{"' + b"a" * 2_000_000 + b'": 1}]', "found '1}]'"),
    "three keys": (read_messages, b'[{"role": "user", "content": "a", "more": "b"}]', "expected }"),
    "a key twice": (read_messages, b'[{"role": "user", "role": "user"}]', "role and content"),
    "something behind it": (read_messages, dumped(message("a")) + b" 1", "expected the end"),
    "a string without end": (read_messages, b'[{"role": "' + b"\\\"" * 900_000, "Unterminated"),
    "spaces alone": (read_messages, b" " * 2_000_000, "found its end"),
    "a list without messages": (read_messages, b"[]", "expected {"),
    "the start of an emoji": (read_messages, b'[{"role": "user", "content": "\\ud83d"}]', "lone surrogate"),
    "no JSON": (read_messages, b"{", 'expected ['),
    "not UTF-8": (read_messages, b'["\xff"]', 'not UTF-8'),
    "17 stop strings": (read_stop, [b"a"] * 17, "stop_strings"),
    "a long stop string": (read_stop, [b"a" * 10_000_000], "stop_characters"),
    "a stop string of emoji": (read_stop, ["\U0001f600".encode() * 1001], "stop_characters"),
    "a request id of 129 characters": (check_request_id, "a" * 129, "request_id_characters"),
    "a request id that forges a line": (check_request_id, "1\nERROR all is lost", "unprintable"),
    "a request id with a surrogate": (check_request_id, "\ud800", "unprintable"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_at_once(name):
    read, data, reason = REFUSED[name]
    began = time.process_time()
    with pytest.raises(InvalidRequest) as raised:
        read(data)
    assert time.process_time() - began < 2  # processor seconds; the slowest walks over 2 MB of spaces, in 0.1
    assert reason in str(raised.value) and len(str(raised.value)) < 400


def test_questions_at_the_limit_are_read():
    assert read_question("é".encode() * MOST["question_characters"])[0]["content"][-1] == "é"
    assert len(read_messages(dumped(*[message("a"), message("b", "assistant")] * (MOST["messages"] // 2)))) == 1024
    assert read_stop(["é".encode() * 1000] * 16)[15] == "é" * 1000
    check_request_id("")
    check_request_id("é" * 128)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["user", "assistant"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "a"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@FEW
@given(JSON)
def test_any_json_is_a_conversation_or_refused(value):
    try:
        messages = read_messages(json.dumps(value).encode("utf-8", "surrogatepass"))
    except InvalidRequest:
        return
    assert messages == value and all(set(one) == {"role", "content"} for one in messages)
    assert json.dumps(messages).encode() and as_conversation(messages) == messages


@FEW
@given(st.binary(max_size=30))
def test_any_bytes_are_a_question_or_refused(data):
    for read in (read_question, read_messages):
        try:
            (turn,) = read(data)
        except InvalidRequest:
            continue
        assert turn["content"].encode() == data or read is read_messages


NUMBERS = st.one_of(st.none(), st.floats(), st.sampled_from([1e308, -1e308, 5e-324, 1e18, 0.0, -0.0]))


@FEW
@given(NUMBERS, NUMBERS, st.integers(1, 10**6), st.floats(0.001, 1000))
def test_any_segment_names_frames_or_is_refused(start, end, frames, rate):
    try:
        segment = Segment(start, end)
        segment.refuse_reversed()
        first, last = candidate_range(frames, rate, segment)
    except BadSegment:
        return
    assert 0 <= first <= last < frames


@pytest.fixture(scope="module")
def entry_stage():
    """The entry's module, with a stand-in for Triton's."""
    names = ["videollama_server.stages." + name for name in ("python_backend", "metrics", "calls", "entry_stage")]
    triton = "triton_python_backend_utils"
    before = {name: sys.modules.pop(name, None) for name in (triton, *names)}
    sys.modules[triton] = ModuleType(triton)
    yield importlib.import_module(names[-1])
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def arrays(tensor):
    """Arrays that Triton accepts for a tensor: of its type, with any values, and sometimes of another size."""
    values = {
        "STRING": st.one_of(st.binary(max_size=6), st.sampled_from([b"video", b"[]", b"a", dumped(message("a"))])),
        "BOOL": st.booleans(),
        "INT32": st.integers(-(2**31), 2**31 - 1),
        "UINT64": st.integers(0, 2**64 - 1),
        "FP32": st.floats(width=32),
        "FP64": st.floats(),
    }[tensor.dtype]
    types = {"STRING": np.object_, "BOOL": np.bool_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}
    sizes = st.sampled_from([1, 1, 1, 1, 0, 2])
    return sizes.flatmap(lambda size: st.lists(values, min_size=size, max_size=size)).map(
        lambda numbers: np.array(numbers, types.get(tensor.dtype, np.float64))
    )


REQUESTS = st.fixed_dictionaries({one.name: st.one_of(st.none(), arrays(one)) for one in ENTRY.inputs})


@FEW
@given(REQUESTS)
def test_any_tensors_are_a_question_or_refused(entry_stage, inputs):
    try:
        question = entry_stage._read_question(inputs, "")
    except InvalidRequest as error:
        assert len(str(error)) < 500
        return
    assert question.conversation and (question.kind is None) == (not question.files and question.url is None)
    options = question.options
    assert options.temperature is None or 0 <= options.temperature <= 100
    assert all(value is None or math.isfinite(value) for value in (question.segment.start, question.segment.end))


def test_stop_strings_belong_to_sampling(entry_stage):
    with pytest.raises(BadSampling):
        entry_stage.read_options({}, np.array([b"a"] * 17, np.object_))
    assert entry_stage.read_options({}, np.array([b"a", b"b"], np.object_)).stop == ("a", "b")
