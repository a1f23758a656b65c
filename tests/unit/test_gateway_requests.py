"""OpenAI API request bodies -> questions: every form that known clients send, and what is refused."""

import base64
import json

import pytest

from conftest import MEDIA
from videollama_core.protocol.errors import (
    DeadlineExceeded,
    MediaUnreachable,
    Overloaded,
    ServerUnreachable,
    StageFailed,
    UnreadableMedia,
)
from videollama_gateway.api.chat_request import ChatRequest, read_chat_request
from videollama_gateway.api.responses import read_responses_request
from videollama_gateway.failures import BadRequest, body_of, headers_of, status_of

CLIP, PICTURE = (MEDIA / "plain_96x64.mp4").read_bytes(), (MEDIA / "image_90x50.png").read_bytes()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def url(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{encoded(content)}"


CLIP_URL, PICTURE_URL = url("video/mp4", CLIP), url("image/png", PICTURE)
TEXT = {"type": "text", "text": "What happens?"}


def read(*parts: object, **more: object) -> ChatRequest:
    body = {"model": "videollama2", "messages": [{"role": "user", "content": list(parts)}], **more}
    return read_chat_request(json.loads(json.dumps(body)))


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "video_url", "video_url": {"url": CLIP_URL}}, "video"),
        ({"type": "video_url", "video_url": CLIP_URL}, "video"),
        ({"type": "image_url", "image_url": {"url": PICTURE_URL, "detail": "auto"}}, "image"),
        ({"type": "image_url", "image_url": {"url": CLIP_URL}}, "video"),
        ({"type": "input_image", "image_url": PICTURE_URL}, "image"),
        ({"type": "audio_url", "audio_url": {"url": url("audio/wav", b"RIFF")}}, "audio"),
        ({"type": "input_audio", "input_audio": {"data": encoded(b"RIFF"), "format": "wav"}}, "audio"),
        ({"type": "file", "file": {"file_data": CLIP_URL, "filename": "clip.mp4"}}, "video"),
        ({"type": "file", "file": {"file_data": encoded(PICTURE)}}, "image"),
        ({"type": "file", "file": {"file_data": base64.encodebytes(PICTURE).decode()}}, "image"),
        ({"type": "video_url", "video_url": {"url": url("video/webm;codecs=vp8,opus", CLIP)}}, "video"),
        ({"type": "image_url", "image_url": {"url": url('video/mp4; codecs="avc1.42E01E, mp4a.40.2"', CLIP)}}, "video"),
        ({"type": "file", "file": {"file_data": encoded(CLIP)}}, "video"),
    ],
)
def test_media_in_every_accepted_form(part, kind):
    asked = read(TEXT, part)
    assert asked.messages == [{"role": "user", "content": "What happens?"}]
    assert list(asked.options) == [kind] and asked.media_digest
    if kind in ("video", "image"):
        assert asked.options[kind] == {"video": CLIP, "image": PICTURE}[kind]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"II*\0", "image"),
        (b"MM\0*", "image"),
        (b"\xff\xf3\x48", "audio"),  # mp3 of 22 kHz without tags, as speech synthesis writes it
        (b"\xff\xf1\x50", "audio"),  # AAC
        (b"FORM\0\0\0\0AIFF", "audio"),
        (b"#!AMR\n", "audio"),
        (b"FLV\1", "video"),
        (b"\0\0\1\xba", "video"),  # MPEG program stream
        (b"\0\0\0\x14ftypqt  ", "video"),
        ((b"G" + bytes(187)) * 2, "video"),  # MPEG transport stream
    ],
    ids=lambda value: value if isinstance(value, str) else value[:6].hex(),
)
def test_the_first_bytes_of_a_file_tell_its_kind(head, kind):
    assert list(read(TEXT, {"type": "file", "file": {"file_data": encoded(head + bytes(99))}}).options) == [kind]


def test_pictures_are_the_frames_of_one_video():
    part = {"type": "image_url", "image_url": {"url": PICTURE_URL}}
    assert read(part, part, TEXT).options == {"video": [PICTURE, PICTURE]}


def test_urls_are_passed_to_the_server():
    part = {"type": "video_url", "video_url": {"url": "https://media.example.org/a.mp4"}}
    assert read(part, TEXT).options == {"video_url": "https://media.example.org/a.mp4"}
    named = {"type": "file", "file": {"file_data": "https://media.example.org/a.png"}}
    assert read(named, TEXT).options == {"image_url": "https://media.example.org/a.png"}


def test_extra_options_in_their_three_places():
    part = {"type": "video_url", "video_url": {"url": CLIP_URL, "start": 1, "with_audio": True}, "end": 2.5}
    expected = {"video": CLIP, "start": 1.0, "end": 2.5, "with_audio": True}
    assert read(TEXT, part).options == expected
    plain = {"type": "video_url", "video_url": {"url": CLIP_URL}}
    assert read(TEXT, plain, start=1, end=2.5, with_audio=True).options == expected
    kwargs = {"video": {"start": 1, "end": 2.5, "with_audio": True}}
    assert read(TEXT, plain, media_io_kwargs=kwargs).options == expected
    with pytest.raises(BadRequest, match="both"):
        read(TEXT, part, start=2)
    frames = {"num_frames": 16, "sampling": "keyframes"}
    assert read(TEXT, plain, **frames).options == read(TEXT, plain, media_io_kwargs={"video": frames}).options
    assert read(TEXT, plain, **frames).options == {"video": CLIP, **frames}


def test_options_and_ignored_fields():
    asked = read(
        TEXT,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=1,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
        n=1,
        tools=[],
        user="me",
        logprobs=False,
        response_format={"type": "text"},
    )
    assert asked.options == {
        "max_new_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 1,
        "stop": ["x"],
    }
    assert asked.stream and asked.include_usage and asked.media_digest is None


def test_the_system_message_comes_first():
    body = {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [TEXT]}]}
    assert read_chat_request(body).messages[0] == {"role": "system", "content": "Be brief."}
    body["messages"].reverse()
    with pytest.raises(BadRequest, match="system message is the first"):
        read_chat_request(body)


@pytest.mark.parametrize(
    ("more", "parameter"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"num_frames": 16}, "num_frames"),
        ({"num_frames": 1.5}, "num_frames"),
        ({"media_io_kwargs": {"video": {"max_frames": 16}}}, "max_frames"),
        ({"mm_processor_kwargs": {"fps": 2}}, "fps"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),  # JSON can hold it, no float can
        ({"seed": 10**400}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"start": 1}, "start"),
        ({"stream_options": 1}, "stream_options"),
        ({"stream_options": False}, "stream_options"),
        ({"stream_options": {"include_usage": "false"}}, "include_usage"),
        ({"stream": "false"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
    ],
)
def test_unsupported_options_that_would_change_the_answer_are_refused(more, parameter):
    with pytest.raises(BadRequest) as raised:
        read(TEXT, **more)
    assert raised.value.parameter == parameter and status_of(raised.value)[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"model": 1},
        {"model": "m"},
        {"model": "m", "messages": []},
        {"model": "m", "messages": [1]},
        {"model": "m", "messages": [{"role": "tool", "content": "x"}]},
        {"model": "m", "messages": [{"role": ["user"], "content": "x"}]},
        {"model": "m", "messages": [{"role": "user"}]},
        {"model": "m", "messages": [{"role": "user", "content": [{}]}]},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": []}]}]},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "file", "file": {"url": "http://[x"}}]}]},
    ],
)
def test_invalid_bodies_are_refused(body):
    with pytest.raises(BadRequest):
        read_chat_request(body)


@pytest.mark.parametrize(
    "source",
    [
        "data:video/mp4,xyz",
        "data:video/mp4;base64,!!!",
        "data:;base64,",
        "ftp://x/y.mp4",
        "javascript:1",
        "not base64",
        "",
    ],
)
def test_invalid_media_are_refused(source):
    with pytest.raises(BadRequest):
        read(TEXT, {"type": "video_url", "video_url": {"url": source}})


def test_two_kinds_and_media_of_later_turns_are_refused():
    clip = {"type": "video_url", "video_url": {"url": CLIP_URL}}
    with pytest.raises(BadRequest, match="one video"):
        read(clip, {"type": "image_url", "image_url": {"url": PICTURE_URL}})
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [TEXT, clip]},
    ]
    with pytest.raises(BadRequest, match="first user message"):
        read_chat_request({"model": "m", "messages": turns})


def test_bodies_of_the_responses_api():
    asked = read_responses_request({"model": "m", "input": "Hi", "instructions": "Be brief.", "max_output_tokens": 5})
    assert asked.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert asked.options == {"max_new_tokens": 5}
    for wrong in (
        [],
        {"model": "m"},
        {"model": "m", "input": 5},
        {"model": "m", "input": [{"type": "item_reference", "id": "x"}]},
        {"model": "m", "input": "Hi", "background": True},
        {"model": "m", "input": "Hi", "text": {"format": {"type": "json_object"}}},
        {"model": "m", "input": "Hi", "max_tokens": 5},
    ):
        with pytest.raises(BadRequest):
            read_responses_request(wrong)


def test_errors_of_the_responses_api_name_what_was_sent():
    part = {"type": "input_image", "file_id": "x"}
    for body, name in (
        ({"input": [{"role": "user", "content": [part]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [part]}], "instructions": "Be brief."}, "input[0].content[0]"),
        ({"input": "Hi", "instructions": 5}, "instructions"),
        ({"input": [{"role": "tool", "content": "x"}], "instructions": "Be brief."}, "input[0]"),
    ):
        with pytest.raises(BadRequest) as raised:
            read_responses_request({"model": "m", **body})
        assert raised.value.parameter.startswith(name) and str(raised.value).startswith(name)


def test_fields_of_the_responses_api_that_change_no_answer_are_accepted():
    harmless = {"prompt_cache_key": "a", "safety_identifier": "b", "stream_options": {"include_obfuscation": True}}
    assert read_responses_request({"model": "m", "input": "Hi", **harmless}).messages


def test_statuses_that_clients_act_on():
    """On 429 and 5xx clients send the whole body again, so errors that cannot get better are 400."""
    expected = {
        UnreadableMedia: 400,
        MediaUnreachable: 400,
        Overloaded: 429,
        ServerUnreachable: 503,
        DeadlineExceeded: 504,
        StageFailed: 500,
    }
    for kind, status in expected.items():
        error = kind("why")
        assert status_of(error)[0] == status and body_of(error)["error"]["code"] == kind.__name__
        assert ("retry-after" in headers_of(error)) == (status in (429, 503))


def test_a_field_name_with_a_lone_surrogate_is_refused():
    part = {"type": "file", "file": {"url": "https://host/clip.mp4", "\ud800": 1}}
    with pytest.raises(BadRequest) as raised:
        read_chat_request({"model": "m", "messages": [{"role": "user", "content": [part]}]})
    str(raised.value).encode()
