"""Invalid input to a running server: an immediate typed error, and an undisturbed neighbour."""

import json
import math
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from conftest import MEDIA
from service.servers import unchanged_neighbour
from videollama_client import BadSampling, BadSegment, InvalidRequest, PromptTooLong, UnreadableMedia
from videollama_core.protocol.errors import from_wire

VARIANT = "mistral-clip-8f"
VIDEO = MEDIA / "plain_96x64.mp4"
WHOLE = (MEDIA / "sample_demo_1.mp4").read_bytes()
# A refusal needs no decoding step and no timeout; the slowest here reads a broken file.
AT_ONCE_SECONDS = 5.0


@pytest.fixture(scope="module")
def server(server_of):
    return server_of(VARIANT)


@pytest.fixture(scope="module", autouse=True)
def neighbour(server):
    """Asks from the first case to the last."""
    options = {"video": MEDIA / "vfr_80x60.mp4", "max_new_tokens": 120, "temperature": 2.0, "seed": 5}
    with unchanged_neighbour(server, "Tell me all about it", **options):
        yield


ASKED = {
    "not media": ({"video": b"plain text, not media at all " * 50}, UnreadableMedia),
    "empty": ({"video": b""}, UnreadableMedia),
    "cut off": ({"video": WHOLE[: len(WHOLE) // 2]}, UnreadableMedia),
    "sound only": ({"video": MEDIA / "tone_16k_mono_4s.wav"}, UnreadableMedia),
    "no frames": ({"video": np.zeros((0, 8, 8, 3), np.uint8)}, UnreadableMedia),
    "beyond the end": ({"video": VIDEO, "start": 60.0}, BadSegment),
    "reversed": ({"video": VIDEO, "start": 3.0, "end": 1.0}, BadSegment),
    "before the start": ({"video": VIDEO, "start": -1.0}, BadSegment),
    "unknown option": ({"beams": 4}, InvalidRequest),
    "no tokens": ({"max_new_tokens": 0}, BadSampling),
    "huge number of tokens": ({"max_new_tokens": 10**9}, BadSampling),
    "temperature not a number": ({"temperature": math.nan}, BadSampling),
    "temperature without end": ({"temperature": math.inf}, BadSampling),
    "picture that is none": ({"image": b"\x89PNG\r\n\x1a\n no"}, UnreadableMedia),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_client_gets_a_typed_error(name, server):
    options, kind = ASKED[name]
    began = time.monotonic()
    with server.client() as client, pytest.raises(kind):
        client.ask("What is it?", **options)
    assert time.monotonic() - began < AT_ONCE_SECONDS


def test_a_prompt_longer_than_the_context(server):
    with server.client() as client, pytest.raises(PromptTooLong, match="the context holds 32768"):
        client.ask("word " * 40000)


def test_the_medias_own_placeholder_in_the_text(server):
    with server.client() as client:
        with pytest.raises(InvalidRequest, match="<video>"):
            client.ask("what is <video> here?", video=VIDEO)
        assert client.ask("what is <video> here?", max_new_tokens=2).usage.completion_tokens == 2


def test_special_tokens_in_the_text_are_read_as_in_the_reference(server):
    """The golden cases special_in_text and masked_pad_token hold the exact ids; here they must not harm anyone."""
    with server.client() as client:
        assert client.ask("</s><s>[INST]<unk>", max_new_tokens=3).usage.completion_tokens <= 3


def plain(server, outputs=("text",), model="videollama2", **inputs) -> str:
    """The error text of a request by plain tritonclient, with any types and shapes; "" if it was answered."""
    tensors = []
    for name, value in inputs.items():
        tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    ended, errors = threading.Event(), []

    def receive(result, error):
        if error is not None:
            errors.append(str(error))
        if error is not None or result.get_response().parameters["triton_final_response"].bool_param:
            ended.set()

    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(receive)
        client.async_stream_infer(model, tensors, enable_empty_final_response=True)
        assert ended.wait(AT_ONCE_SECONDS), "no answer and no error"
        client.stop_stream()
    return errors[0] if errors else ""


def text(*items: str) -> np.ndarray:
    return np.array([item.encode() for item in items], np.object_)


WIRE = {
    "no question": {},
    "both questions": {"question": text("a"), "messages": text("[]")},
    "messages not JSON": {"messages": text("{")},
    "messages not a list": {"messages": text('{"role": "user"}')},
    "question of the wrong type": {"question": np.array([1], np.int32)},
    "two questions": {"question": text("a", "b")},
    "question with rank 2": {"question": text("a").reshape(1, 1)},
    "question not UTF-8": {"question": np.array([b"\xff\xfe"], np.object_)},
    "unknown tensor": {"question": text("a"), "colour": text("red")},
    "media without kind": {"question": text("a"), "media": text("x")},
    "kind without media": {"question": text("a"), "media_kind": text("video")},
    "unknown kind": {"question": text("a"), "media": text("x"), "media_kind": text("smell")},
    "media of the wrong type": {"question": text("a"), "media": np.zeros(3, np.uint8), "media_kind": text("video")},
    "audio for a model without an audio tower": {
        "question": text("a"),
        "media": text("x"),
        "media_kind": text("audio"),
    },
    "two videos": {"question": text("a"), "media": text("x", "y"), "media_kind": text("video")},
    "start of the wrong type": {"question": text("a"), "start": np.array([1], np.int64)},
    "start without video": {"question": text("a"), "start": np.array([1.0])},
    "temperature not a number": {"question": text("a"), "temperature": np.array([math.nan], np.float32)},
    "no tokens": {"question": text("a"), "max_new_tokens": np.array([0], np.int32)},
    "two temperatures": {"question": text("a"), "temperature": np.array([1, 2], np.float32)},
    "empty stop string": {"question": text("a"), "stop": text("")},
}


@pytest.mark.parametrize("name", WIRE)
def test_plain_clients_get_a_typed_error_too(name, server):
    message = plain(server, **WIRE[name])
    assert isinstance(from_wire(message), InvalidRequest), message


STAGE_INPUTS = {
    "frames of another size": ("encoder", {"frames": np.zeros((8, 10, 10, 3), np.uint8)}),
    "too few frames": ("encoder", {"frames": np.zeros((3, 56, 56, 3), np.uint8)}),
    "no frames": ("encoder", {"frames": np.zeros((0, 56, 56, 3), np.uint8)}),
    "frames as floats": ("encoder", {"frames": np.zeros((8, 56, 56, 3), np.float32)}),
    "ids beyond the vocabulary": ("tensorrt_llm", {"input_ids": np.array([[5000]], np.int32), "input_lengths": np.array([[1]], np.int32), "request_output_len": np.array([[1]], np.int32)}),
    "ids without end": ("tensorrt_llm", {"input_ids": np.array([[5]], np.int32), "input_lengths": np.array([[9]], np.int32), "request_output_len": np.array([[1]], np.int32)}),
    "no new tokens": ("tensorrt_llm", {"input_ids": np.array([[5]], np.int32), "input_lengths": np.array([[1]], np.int32), "request_output_len": np.array([[0]], np.int32)}),
    "table of another width": ("tensorrt_llm", {"input_ids": np.array([[1000]], np.int32), "input_lengths": np.array([[1]], np.int32), "request_output_len": np.array([[1]], np.int32), "prompt_embedding_table": np.zeros((1, 1, 7), np.float32)}),
    "unread media": ("perception", {"media": text("junk"), "media_kind": text("video")}),
    "unread media in the ensemble": ("ensemble", {"question": text("a"), "media": text("junk"), "media_kind": text("video")}),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGE_INPUTS)
def test_stages_refuse_invalid_tensors(name, server):
    model, inputs = STAGE_INPUTS[name]
    message = plain(server, model=model, **inputs)
    assert isinstance(from_wire(message), InvalidRequest), message


def test_messages_over_json_reach_the_template(server):
    """This checkpoint's Mistral template requires alternating roles."""
    conversation = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    message = plain(server, messages=text(json.dumps(conversation)))
    assert isinstance(from_wire(message), InvalidRequest) and "alternate" in message
