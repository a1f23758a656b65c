"""Every program of examples/ runs against a real server and prints what the client answers."""

import json
import shutil
import subprocess
import sys

import pytest

from conftest import AUDIO_VARIANT, MEDIA, ROOT

EXAMPLES = ROOT / "examples"
VARIANT, CLIP, QUESTION = "mistral-clip-8f", MEDIA / "plain_96x64.mp4", "What happens?"


def run(name, *words, stdin=""):
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
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
    found = run("conversation.py", CLIP, server.grpc, stdin="What happens?\nAnd then?\n")
    first = answer(server, video=CLIP)
    messages = [("user", "What happens?"), ("assistant", first), ("user", "And then?")]
    second = answer(server, [{"role": role, "content": content} for role, content in messages], video=CLIP)
    assert found == f"{first}\n{second}"


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


def test_every_example_is_run():
    """A program added to the folder needs a test above."""
    named = {"ask.py", "stream.py", "plain_triton.py", "batch_folder.py", "conversation.py", "audio.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == named
