"""What the client does before it sends anything, and how it reads messages."""

import json

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import videollama_client
from conftest import MEDIA
from videollama_client import Client, ServerUnreachable
from videollama_client.answer_reader import AnswerReader
from videollama_client.media import read_media
from videollama_client.wire import build_question
from videollama_core.protocol.errors import BadSegment, InvalidRequest, StageFailed, UnreadableMedia
from videollama_core.protocol.messages import Usage
from wire_messages import message


def test_the_public_names_are_exact():
    assert set(videollama_client.__all__) == {
        "Answer", "AnswerStream", "AsyncAnswerStream", "AsyncClient", "BadSampling", "BadSegment", "Cancelled", "Client",
        "DeadlineExceeded", "InvalidRequest", "MediaUnreachable", "Overloaded", "PromptTooLong",
        "NotAllowed", "QuestionOptions", "ServerUnreachable", "StageFailed",
        "UnreadableMedia", "Usage", "VideoLlamaError",
    }  # fmt: skip


def test_media_in_every_accepted_form(tmp_path):
    frame = np.zeros((4, 6, 3), np.uint8)
    png = (MEDIA / "image_90x50.png").read_bytes()
    assert read_media(None, None) is None
    assert read_media(MEDIA / "plain_96x64.mp4", None).kind == "video"
    assert read_media(str(MEDIA / "anim_60x44.gif"), None).kind == "video"
    assert read_media(b"bytes", None).files == (b"bytes",)
    assert read_media(None, png) == read_media(None, MEDIA / "image_90x50.png")
    assert read_media(np.stack([frame] * 3), None).kind == "frames"
    assert len(read_media([frame, MEDIA / "image_90x50.png", png], None).files) == 3
    folder = read_media(MEDIA / "frames_dir", None)
    assert folder.kind == "folder"
    assert (
        folder.files[1] == (MEDIA / "frames_dir" / "frame_10.jpg").read_bytes()
    )  # before frame_2, as in the reference


@pytest.mark.parametrize(
    ("video", "image", "kind"),
    [
        ("missing.mp4", None, UnreadableMedia),
        ([], None, InvalidRequest),
        (np.zeros((4, 6, 3), np.uint8), None, UnreadableMedia),
        (np.zeros((2, 4, 6, 3), np.float32), None, UnreadableMedia),
        (7, None, InvalidRequest),
        (b"a", b"b", InvalidRequest),
    ],
)
def test_media_that_cannot_be_sent_are_refused(video, image, kind):
    with pytest.raises(kind):
        read_media(video, image)


def test_audio_in_every_accepted_form():
    clip = MEDIA / "plain_96x64.mp4"
    assert read_media(audio=MEDIA / "tone_16k_mono_4s.wav").kind == "audio"
    assert read_media(audio=b"bytes").files == (b"bytes",)
    assert read_media(video=clip, with_audio=True).kind == "video_with_audio"
    for wrong in (
        {"audio": b"a", "video": clip},
        {"audio": np.zeros(5)},
        {"video": MEDIA / "frames_dir", "with_audio": True},
        {"video": [b"frame"], "with_audio": True},
        {"image": b"a", "with_audio": True},
        {"with_audio": True},
    ):
        with pytest.raises(InvalidRequest):
            read_media(**wrong)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UnreadableMedia, match="no files"):
        read_media(tmp_path, None)


@pytest.mark.parametrize(
    ("question", "arguments", "kind"),
    [
        ("hi", {"colour": "red"}, InvalidRequest),
        ("hi", {"start": 1.0}, BadSegment),
        ("hi", {"video": b"x", "start": 2.0, "end": 1.0}, BadSegment),
        ("hi", {"video": b"x", "start": -1.0}, BadSegment),
        ("hi", {"image": b"x", "end": 1.0}, BadSegment),
        ([], {}, InvalidRequest),
        ([{"role": "assistant", "content": "x"}], {}, InvalidRequest),
        ([{"role": "robot", "content": "x"}], {}, InvalidRequest),
        ([{"role": "user"}], {}, InvalidRequest),
        ([{"role": "user", "content": 5}], {}, InvalidRequest),
        (5, {}, InvalidRequest),
    ],
)
def test_a_bad_question_is_refused_before_it_is_sent(question, arguments, kind):
    with pytest.raises(kind):
        build_question(question, None, arguments)


def test_messages_become_pieces_and_an_answer():
    reader = AnswerReader()
    usage = {"prompt_tokens": 3, "media_tokens": 0, "completion_tokens": 2}
    summary = json.dumps({"finish_reason": "stop", "usage": usage, "seconds": {"total": 0.1}})
    assert reader.read(message(process="7-a")) == "" and reader.process == "7-a"
    assert reader.read(message(text="Grüße ", output_ids=[5])) == "Grüße "
    assert reader.answer is None
    assert reader.read(message(text="🎉", output_ids=[6], summary=summary)) == "🎉"
    answer = reader.finish()
    assert (answer.text, answer.output_ids, answer.finish_reason) == ("Grüße 🎉", [5, 6], "stop")
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize(("said", "cached"), [({}, 0), ({"cached_tokens": 2}, 2), ({"more": "to come"}, 0)])
def test_optional_fields_of_a_summary(said, cached):
    reader = AnswerReader()
    usage = {"prompt_tokens": 3, "media_tokens": 0, "completion_tokens": 1} | said
    summary = json.dumps({"finish_reason": "stop", "usage": usage, "seconds": {"total": 0.1}, "more": 1})
    reader.read(message(text="ja", output_ids=[5], summary=summary))
    assert reader.finish().usage == Usage(3, 0, 1, cached_tokens=cached)


def test_a_stream_without_an_end_is_an_error():
    reader = AnswerReader()
    reader.read(message(text="half", output_ids=[5]))
    with pytest.raises(StageFailed, match="complete"):
        reader.finish()
    with pytest.raises(UnreadableMedia, match="0 frames"):
        reader.read(
            service_pb2.ModelStreamInferResponse(error_message="in ensemble 'perception', UnreadableMedia: 0 frames")
        )


@pytest.mark.parametrize("address", ["localhost", "http://localhost:8001", "localhost:grpc", ":1"])
def test_an_address_is_host_and_port(address):
    with pytest.raises(InvalidRequest, match="host:port"):
        Client(address)


def test_an_unreachable_address_is_an_error():
    with Client("127.0.0.1:9") as client:
        assert not client.health()
        with pytest.raises(ServerUnreachable, match="vl2 serve"):
            client.ask("hi")
        with pytest.raises(ServerUnreachable, match="not|no server"):
            client.wait_until_ready(0.3)


def test_numbers_of_numpy_are_numbers():
    options = {"video": MEDIA / "sample_demo_3.mp4", "num_frames": np.int64(8), "start": np.float32(0.5)}
    request = build_question("Who?", None, options)
    sent = dict(zip([tensor.name for tensor in request.inputs], request.raw_input_contents, strict=True))
    assert sent["num_frames"] == np.int32(8).tobytes() and sent["start"] == np.float64(0.5).tobytes()
    for wrong in (np.float64(8), np.bool_(True), True):
        with pytest.raises(InvalidRequest, match="num_frames is"):
            build_question("Who?", None, options | {"num_frames": wrong})


@pytest.mark.parametrize("value", [None, [1], np.zeros((2, 2)), {}])
def test_values_of_other_types_are_refused_by_name(value):
    """Nothing listens at the address: every refusal comes before a connection."""
    calls = {
        "restart_seconds": lambda client: Client("localhost:1", restart_seconds=value),
        "timeout": lambda client: client.wait_until_ready(value),
        "request_id": lambda client: client.cancel(value),
        "sampling": lambda client: client.ask("hi", video=b"x", sampling=[] if value is None else value),
        "measured": lambda client: client.ask("hi", measured=[] if value is None else value),
    }
    with Client("localhost:1") as client:
        for name, call in calls.items():
            with pytest.raises(InvalidRequest, match=f"^{name} is "):
                call(client)
