"""Media by URL through running servers: one with its gate open, and one as it is by default.

A host of this machine is refused by the gate, so fetches over HTTPS are tried in process (tests/security/test_addresses.py).
"""

import time

import pytest

from conftest import MEDIA
from service.servers import serving
from videollama_client import InvalidRequest, VideoLlamaError

VARIANT = "qwen2-clip-8f"
QUESTION, SHORT = "What is there?", {"max_new_tokens": 4}
CLIP = MEDIA / "plain_96x64.mp4"
HOST = "media.invalid"  # a name that never stands for anything


@pytest.fixture(scope="module")
def server(bundle_of, tmp_path_factory):
    log = tmp_path_factory.mktemp("by-url") / "server.log"
    options = ("--allow-media-hosts", f"{HOST},localhost", "--media-root", MEDIA)
    with serving(bundle_of(VARIANT), log, *options) as server:
        yield server


def test_an_answer_is_the_same_however_the_media_is_sent(server):
    with server.client() as client:
        sent = client.ask(QUESTION, video=CLIP, **SHORT)
        answer = client.ask(QUESTION, video_url=f"file://{CLIP}", **SHORT)
        assert (answer.text, answer.output_ids) == (sent.text, sent.output_ids) and "fetch" in answer.seconds
        assert client.ask(QUESTION, image_url=f"file://{MEDIA}/image_90x50.png", **SHORT).usage.media_tokens


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (f"http://{HOST}/clip.mp4", "InvalidRequest"), ("https://evil.example.org/", "InvalidRequest"),
        ("https://127.0.0.1/", "InvalidRequest"), (f"https://{HOST}@evil.example.org/", "InvalidRequest"),
        ("https://localhost/", "InvalidRequest"), (f"https://{HOST}/clip.mp4", "MediaUnreachable"),
        ("file:///etc/passwd", "InvalidRequest"), (f"file://{MEDIA}/../README.md", "InvalidRequest"),
        (f"file://{MEDIA}/missing", "MediaUnreachable"), (f"file://{MEDIA}", "InvalidRequest"),
        (f"file://{MEDIA}/tone_16k_mono_4s.wav", "UnreadableMedia"),
    ],
    ids=str,
)  # fmt: skip
def test_forbidden_urls_are_refused(server, url, kind):
    with server.client() as client, pytest.raises(VideoLlamaError) as raised:
        began = time.monotonic()
        client.ask(QUESTION, video_url=url, **SHORT)
    assert raised.value.kind == kind and time.monotonic() - began < 20


def test_a_server_refuses_urls_by_default(server_of):
    with server_of(VARIANT).client() as client:
        for url in (f"https://{HOST}/clip.mp4", f"file://{CLIP}"):
            with pytest.raises(InvalidRequest, match="media_url is not taken by this server"):
                client.ask(QUESTION, video_url=url, **SHORT)
