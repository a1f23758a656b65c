"""`vl2 chat` as a user runs it: through a pipe, and on a terminal."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager

from conftest import MEDIA
from service.servers import vl2

VARIANT = "qwen2-clip-8f"
CLIP, PICTURE = MEDIA / "plain_96x64.mp4", MEDIA / "image_90x50.png"
SHORT = ("--max-new-tokens", 8)
# An answer of this many tokens takes seconds: nothing ends it early.
LONG = ("--max-new-tokens", 20000)


def piped(text: str | bytes, *words: object) -> subprocess.CompletedProcess[str]:
    text = text.encode() if isinstance(text, str) else text
    result = subprocess.run(vl2("chat", *words), input=text, capture_output=True, timeout=90)
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


def say(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]


def test_each_question_carries_the_conversation(server_of):
    server = server_of(VARIANT)
    with server.client() as client:
        options = {"video": CLIP, "max_new_tokens": 8, "start": 1.0}
        first = client.ask("What happens?", **options).text
        second = client.ask(say("What happens?", first, "And then?"), **options).text
        alone = client.ask("And then?", **options).text
    assert second != alone  # else this test could not tell
    result = piped("What happens?\n\n  And then?  ", CLIP, *SHORT, "--start", 1, "--url", server.grpc)
    assert (result.stdout, result.stderr, result.returncode) == (f"{first}\n{second}\n", "", 0)


def test_commands(server_of, tmp_path):
    server = server_of(VARIANT)
    with server.client() as client:
        about_clip = client.ask("Who?", video=CLIP, max_new_tokens=8).text
        about_picture = client.ask("Who?", image=PICTURE, max_new_tokens=8).text
        later = client.ask(say("Who?", about_picture, "Why?"), image=PICTURE, max_new_tokens=8).text
    saved = tmp_path / "a b.json"
    lines = [
        "Who?",
        "/reset",
        "Who?",
        f"/media {PICTURE}",  # the segment was the clip's
        "Who?",
        f"/save {saved}",
        "Why?",
        f"/save '{saved}'",
        "/help",
        "/quit",
        "Who?",
    ]
    result = piped("\n".join(lines), CLIP, *SHORT, "--start", 0, "--url", server.grpc)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"{text}\n" for text in (about_clip, about_clip, about_picture, later))
    assert json.loads(saved.read_text("utf-8")) == {
        "media": {"image": str(PICTURE)},
        "messages": say("Who?", about_picture, "Why?", later),
    }
    assert f"(2 messages in {saved})" in result.stderr and f"(4 messages in {saved})" in result.stderr
    assert "/media PATH" in result.stderr


def test_an_error_is_one_line_and_the_chat_goes_on(server_of, tmp_path):
    """The medium and the conversation stay as they were."""
    server, there = server_of(VARIANT), tmp_path / "there.json"
    there.write_text("not of this chat")
    with server.client() as client:
        first = client.ask("Who?", video=CLIP, max_new_tokens=8).text
        second = client.ask(say("Who?", first, "Why?"), video=CLIP, max_new_tokens=8).text
    wrong = {
        "/media nowhere.mp4": "UnreadableMedia: nowhere.mp4 cannot be read: No such file",
        "/media": "InvalidRequest: /media takes a path",
        "/save": "InvalidRequest: /save takes a file",
        f"/save {there}": "exists and was not written by this chat",
        f"/save {tmp_path}/no/where.json": "no/where.json: No such file or directory",
        f"/save {'x' * 300}": "File name too long",
        f"/media {'x' * 300}": "File name too long",
        "/media ~no-such-person/\0.mp4": "UnreadableMedia: ~no-such-person/ .mp4 cannot be read: No such file",
        "/mediax": "/mediax is not a command; the commands are /media, /reset, /save, /help, /quit",
        "x" * 200_000: "PromptTooLong",
    }
    result = piped("\n".join(["Who?", *wrong, "Why?"]), CLIP, *SHORT, "--url", server.grpc)
    assert result.stdout == f"{first}\n{second}\n"
    lines = result.stderr.splitlines()
    assert len(lines) == len(wrong) and all(line.startswith("vl2: ") for line in lines), result.stderr
    for line, reason in zip(lines, wrong.values(), strict=True):
        assert reason in line
    assert result.returncode == 2 and there.read_text() == "not of this chat"


def test_a_question_that_the_server_refuses_is_not_kept(server_of):
    """With audio and a checkpoint without an audio tower, each question reports that until another medium is chosen."""
    sound = MEDIA / "tone_16k_mono_4s.wav"
    server = server_of(VARIANT)
    with server.client() as client:
        wanted = client.ask("Why?", video=CLIP, max_new_tokens=8).text
    result = piped(f"Who?\nWhy?\n/media {CLIP}\nWhy?", sound, *SHORT, "--url", server.grpc)
    assert result.stdout == f"{wanted}\n" and result.stderr.count("has no audio tower") == 2


def test_without_a_server_each_question_reports_it():
    result = piped("Who?\nWhy?\n", "--url", "127.0.0.1:9")
    assert result.returncode == 3 and result.stderr.count("vl2: ServerUnreachable") == 2 and result.stdout == ""


def test_bytes_that_are_not_text_do_not_end_the_chat(server_of):
    result = piped(b"Who \xff?\nWhy?\n", *SHORT, "--url", server_of(VARIANT).grpc)
    assert result.returncode == 0 and result.stdout.count("\n") >= 2 and result.stderr == ""


class Terminal:
    """A program on a pseudo-terminal: its output, and keys for it."""

    def __init__(self, master: int, process: subprocess.Popen) -> None:
        self.process, self._master, self.shown = process, master, ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """The output up to the pattern; the next wait starts after it."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline and self._read(), f"no {pattern!r} in {self.shown!r}"
        before, self.shown = self.shown[: match.start()], self.shown[match.end() :]
        return before

    def _read(self) -> bool:
        if select.select([self._master], [], [], 1)[0]:
            try:
                data = os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                return False
            self.shown += re.sub(r"\x1b\[\?2004[hl]|\r", "", data)
        return True


@contextmanager
def terminal(*words: object):
    """`vl2 chat` in a session of its own, whose terminal turns control keys into signals."""
    begin = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    master, slave = pty.openpty()
    command = [sys.executable, "-c", begin, *vl2("chat", *words)]
    environment = os.environ | {"TERM": "dumb"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_conversation_on_a_terminal(server_of):
    server = server_of(VARIANT)
    with server.client() as client:
        first = client.ask("Who?", video=CLIP, max_new_tokens=8).text
        second = client.ask(say("Who?", first, "Who?"), video=CLIP, max_new_tokens=8).text
    assert first != second
    with terminal(CLIP, *SHORT, "--url", server.grpc) as screen:
        screen.wait_for(re.escape(f"About {CLIP}. /help lists the commands; Ctrl-D ends.\n> "))
        screen.type("Whx\x7fo?\n")  # with a mistake, taken back
        assert first.strip() in screen.wait_for(r"\n> ")
        screen.type("\x1b[A\n")  # the line before, by the arrow key
        assert second.strip() in screen.wait_for(r"\n> ")
        screen.type("/nothing\n")
        screen.wait_for(r"vl2: InvalidRequest: /nothing is not a command.*\n> ")
        screen.type("half a line")
        screen.wait_for("half a line")
        time.sleep(
            0.5
        )  # a signal just before Python's readline begins to wait for keys is not noticed until the next key
        screen.type("\x03")
        screen.wait_for(r"\(Ctrl-D or /quit ends the chat\)\n> ")
        screen.type("\x04")
        assert screen.process.wait(30) == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(server_of, tmp_path):
    """The answer streams, its slot in the language model is freed, and the text so far is part of the conversation."""
    server, saved = server_of("endless"), tmp_path / "chat.json"
    with terminal(*LONG, "--url", server.grpc) as screen:
        screen.wait_for("> ")
        screen.type("Tell a long story\n")
        screen.wait_for("Tell a long story\n")
        shown = screen.wait_for(r"(?s).{40}")  # some of it is there while it is being written
        screen.type("\x03")
        screen.wait_for(r"\(stopped\)\n> ")
        screen.type(f"/save {saved}\n")
        screen.wait_for(r"\(2 messages in .*\)\n> ")
        screen.type("/reset\n")
        screen.wait_for(r"> ")
        screen.type("/quit\n")
        assert screen.process.wait(30) == 0 and "Traceback" not in shown + screen.shown
    messages = json.loads(saved.read_text("utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] and messages[1]["content"]
    deadline = time.monotonic() + 10
    while server.metric("vl2_num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("vl2_num_requests_running") == 0


def test_ctrl_c_at_any_moment_does_not_end_the_chat(server_of):
    """Before the question is sent, before the answer's first word, or later."""
    with terminal(CLIP, *LONG, "--url", server_of("endless").grpc) as screen:
        screen.wait_for("> ")
        for wait in (0, 0.001, 0.01, 0.03, 0.1, 0.3):
            screen.type("Tell a story\n")
            screen.wait_for("Tell a story\n")
            time.sleep(wait)
            screen.type("\x03")
            shown = screen.wait_for(r"\((stopped|Ctrl-D or /quit ends the chat)\)\n> ")
            assert "Traceback" not in shown
        screen.type("\x04")
        assert screen.process.wait(30) == 0
