"""Arguments that a caller may pass to the client: a request, or a typed error before anything is sent."""

import asyncio
import os
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from security.lies import packed
from security.lying_server import lying
from videollama_client import AsyncClient, Client
from videollama_client.media import read_media
from videollama_client.wire import build_question
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia


@pytest.fixture(scope="module")
def server():
    with lying() as started:
        yield started


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"timeout": "5"}, InvalidRequest), ({"timeout": float("nan")}, InvalidRequest), ({"timeout": -1}, InvalidRequest),
        ({"timeout": 0}, InvalidRequest), ({"timeout": float("inf")}, InvalidRequest), ({"timeout": 10**400}, InvalidRequest),
        ({"timeout": True}, InvalidRequest), ({"timeout": [1]}, InvalidRequest), ({"timeout": 1e300}, InvalidRequest),
        ({"request_id": "a\nb"}, InvalidRequest), ({"request_id": "\ud800"}, InvalidRequest), ({"request_id": 7}, InvalidRequest),
        ({"request_id": ""}, InvalidRequest), ({"request_id": "a" * 129}, InvalidRequest), ({"request_id": b"a"}, InvalidRequest),
        ({"stop": "\ud800"}, InvalidRequest), ({"stop": ["a", "\udfff"]}, InvalidRequest), ({"stop": 5}, InvalidRequest),
        ({"stop": [5]}, InvalidRequest), ({"seed": 10**5000}, InvalidRequest), ({"temperature": 10**400}, InvalidRequest),
        ({"video": "a\0b"}, UnreadableMedia), ({"image": "a\0b"}, UnreadableMedia), ({"video": "\ud800"}, UnreadableMedia),
        ({"video": ""}, UnreadableMedia), ({"video": b"x", "start": 10**400}, InvalidRequest), ({"video": "a" * 5000}, UnreadableMedia),
        ({"image": "/"}, UnreadableMedia), ({"audio": "/"}, UnreadableMedia), ({"image": "/dev/zero"}, UnreadableMedia),
        ({"audio": "/dev/tty"}, UnreadableMedia), ({"video": ["/dev/zero"]}, UnreadableMedia), ({"video": {}}, InvalidRequest),
        ({"video": b"x", "with_audio": np.ones(2)}, InvalidRequest), ({"video_url": 7}, InvalidRequest),
        ({"video_url": ""}, InvalidRequest), ({"video_url": "https://a/\ud800"}, InvalidRequest),
        ({"video_url": "https://a/" + "a" * 5000}, InvalidRequest), ({"image_url": "https://a/b", "image": b"x"}, InvalidRequest),
        ({"image_url": "https://a/b", "with_audio": True}, InvalidRequest),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode() if isinstance(value, dict) and "seed" not in value else None,
)  # fmt: skip
def test_invalid_options_are_refused(server, wrong, kind):
    """Refused before anything is sent, alike by both clients."""
    with Client(server.address) as client, pytest.raises(kind):
        client.stream("What?", **wrong)

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            client.stream("What?", **wrong)

    with pytest.raises(kind):
        asyncio.run(ask())
    assert not server.asked


def test_other_invalid_arguments_are_refused(server):
    for wrong in ("\ud800", [{"role": "user", "content": "\udfff"}]):
        with pytest.raises(InvalidRequest, match="half a character|lone surrogate"):
            build_question(wrong, None, {})
    for wrong in ("5", float("nan"), 0, -1):
        with pytest.raises(InvalidRequest):
            Client(server.address, timeout=wrong)
    with Client(server.address) as client, pytest.raises(InvalidRequest):
        client.wait_until_ready(float("nan"))


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = threading.Event()

    def read() -> None:
        for source in ({"video": tmp_path / "fifo"}, {"image": tmp_path / "fifo"}, {"video": [tmp_path / "fifo"]}):
            with pytest.raises(UnreadableMedia, match="a pipe"):
                read_media(**source)
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(5)


def test_a_url_is_sent_unchanged():
    request = build_question(
        "What?", None, {"video_url": "https://media.example.org/a", "with_audio": True, "start": 1}
    )
    sent = {one.name: raw for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
    assert sent["media_url"] == packed(b"https://media.example.org/a") and sent["media_kind"] == packed(
        b"video_with_audio"
    )
    assert "media" not in sent


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**5000), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.characters(categories=("Cs",)), st.lists(st.one_of(st.text(max_size=3), st.integers()), max_size=3),
    st.dictionaries(st.sampled_from(["role", "content", "x"]), st.text(max_size=5), max_size=3),
    st.just(np.float32("nan")), st.just(np.zeros((2, 2, 3), np.uint8)), st.just(object()),
)  # fmt: skip
NAMES = ["video", "image", "audio", "video_url", "with_audio", "start", "end", "stop", "max_new_tokens", "temperature",
         "top_k", "top_p", "repetition_penalty", "seed", "vcd_alpha", "vcd_beta", "vcd_noise_step", "colour"]  # fmt: skip


@settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(ANYTHING, st.lists(ANYTHING, max_size=3)), st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4)
)
def test_any_arguments_give_a_request_or_a_typed_error(question, options):
    try:
        assert build_question(question, None, options).ByteSize()
    except InvalidRequest as error:
        assert 0 < len(str(error)) < 2000
