"""Every program of examples/ runs against a real server and prints the client's answers."""

import json
import shutil
import subprocess
import sys

import pytest

from conftest import AUDIO_VARIANT, MEDIA, ROOT
from service.servers import gateway_of

EXAMPLES = ROOT / "examples"
VARIANT, CLIP, QUESTION = "mistral-clip-8f", MEDIA / "plain_96x64.mp4", "What happens?"


def run(name, *words, stdin="", by=sys.executable):
    command = [by, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def answer(server, question=QUESTION, **media):
    with server.client() as client:
        return client.ask(question, max_new_tokens=64, **media).text


@pytest.mark.parametrize("name", ["ask.py", "stream.py", "plain_triton.py"])
def test_one_question(name, server_of):
    server = server_of(VARIANT)
    assert run(name, CLIP, QUESTION, server.grpc) == answer(server, video=CLIP)


def test_a_folder_with_a_broken_file(server_of, tmp_path):
    server = server_of(VARIANT)
    clips = [MEDIA / "plain_96x64.mp4", MEDIA / "vfr_80x60.mp4"]
    for clip in clips:
        shutil.copy(clip, tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    lines = {
        line["video"]: line
        for line in map(json.loads, run("batch_folder.py", tmp_path, QUESTION, server.grpc).splitlines())
    }
    assert {clip.name: lines[clip.name]["answer"] for clip in clips} == {
        clip.name: answer(server, video=clip) for clip in clips
    }
    assert "error" in lines["broken.mp4"]


def test_a_conversation(server_of):
    server = server_of(VARIANT)
    output = run("conversation.py", CLIP, server.grpc, stdin="What happens?\nAnd then?\n")
    first = answer(server, video=CLIP)
    messages = [("user", "What happens?"), ("assistant", first), ("user", "And then?")]
    second = answer(server, [{"role": role, "content": content} for role, content in messages], video=CLIP)
    assert output == f"{first}\n{second}"


@pytest.mark.parametrize(
    ("media", "arguments"),
    [
        ("tone_16k_mono_4s.wav", {"audio": MEDIA / "tone_16k_mono_4s.wav"}),
        ("alac16k_96x64.mp4", {"video": MEDIA / "alac16k_96x64.mp4", "with_audio": True}),
    ],
)
def test_audio(media, arguments, server_of):
    server = server_of(AUDIO_VARIANT)
    assert run("audio.py", MEDIA / media, QUESTION, server.grpc) == answer(server, **arguments)


@pytest.fixture(scope="module")
def url(server_of):
    """The OpenAI API in front of the server."""
    with gateway_of("--server", server_of(VARIANT).grpc) as address:
        yield f"http://{address}/v1"


def test_the_openai_sdk(url, server_of):
    assert run("openai_sdk.py", CLIP, QUESTION, url) == answer(server_of(VARIANT), video=CLIP)


def test_several_requests_at_once_by_the_openai_sdk(url, server_of, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    lines = map(json.loads, run("openai_async.py", QUESTION, CLIP, broken, "--url", url).splitlines())
    by_video = {line["video"]: line for line in lines}
    assert by_video[CLIP.name]["answer"] == answer(server_of(VARIANT), video=CLIP)
    assert "not a video that can be opened" in by_video["broken.mp4"]["error"]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(url, server_of):
    *events, done = [line for line in run("curl.sh", CLIP, url, by="sh").splitlines() if line]
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert done == "data: [DONE]"
    assert "".join(chunk.get("content", "") for chunk in chunks) == answer(server_of(VARIANT), video=CLIP)


def test_every_example_is_run():
    """A program added to the folder needs a test above or, if it needs third-party packages, in tests/clients."""
    named = {"ask.py", "stream.py", "plain_triton.py", "batch_folder.py", "conversation.py", "audio.py"}
    named |= {"openai_sdk.py", "openai_async.py", "curl.sh"}
    others = (ROOT / "tests/clients/test_clients.py").read_text("utf-8")
    left = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - named
    assert left and all(f'"{name}"' in others for name in left), left
