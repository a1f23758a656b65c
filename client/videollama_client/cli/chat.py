"""`vl2 chat`: a conversation in the terminal about one media file. Answers go to stdout, everything else to stderr."""

import contextlib
import importlib
import io
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import click

from videollama_client.cli.connection_options import connection_options
from videollama_client.cli.interrupts import interrupts_call
from videollama_client.cli.question_options import ABOUT, KINDS, question_options, with_media
from videollama_client.client import Client
from videollama_client.wire import build_question
from videollama_core.protocol.errors import Cancelled, InvalidRequest, VideoLlamaError
from videollama_core.protocol.messages import Conversation

HELP = """\
/media PATH   start a new conversation about another video, image or audio file, all of it
/reset        forget the conversation
/save FILE    write the conversation as JSON
/help         show this list
/quit         end the chat, as Ctrl-D does; Ctrl-C stops the current answer"""
COMMANDS = ("/media", "/reset", "/save", "/help", "/quit")


def note(text: str) -> None:
    click.echo(text, err=True)


class Chat:
    """A conversation about one media file.

    Args:
        options: keyword arguments of `Client.stream`, the media among them.
    Raises: InvalidRequest or a subclass for options that no question can have.
    """

    def __init__(self, client: Client, options: dict[str, Any]) -> None:
        self._client = client
        self._options = self._checked(options)
        self._messages: Conversation = []
        self._saved: set[Path] = set()

    @staticmethod
    def _checked(options: dict[str, Any]) -> dict[str, Any]:
        build_question("?", None, {name: value for name, value in options.items() if name != "timeout"})
        return options

    @property
    def about(self) -> dict[str, Any]:
        """The options about the media that are set: video, image, audio, start, end and so on."""
        return {name: value for name in ABOUT if (value := self._options.get(name)) not in (None, False)}

    def take(self, line: str) -> bool:
        """Answer a question or run a /command; False ends the chat. Raises: VideoLlamaError."""
        if line.startswith("/"):
            return self.command(line)
        if line:
            self.answer(line)
        return True

    def answer(self, question: str) -> None:
        """Print the answer as it arrives and keep it; Ctrl-C stops it and keeps what has arrived."""
        messages = [*self._messages, {"role": "user", "content": question}]
        pieces: list[str] = []
        request_id = uuid.uuid4().hex
        try:
            with interrupts_call(lambda: self._client.cancel(request_id)) as interrupts:
                stream = self._client.stream(messages, request_id=request_id, **self._options)
                if interrupts.came:  # before there was a request to cancel
                    stream.cancel()
                for piece in stream:
                    pieces.append(piece)
                    click.echo(piece, nl=False)
        except Cancelled:
            pass
        except VideoLlamaError:
            if pieces:
                click.echo()  # put the error on its own line
            raise
        click.echo()
        if interrupts.came:
            note("(stopped)")
        if pieces or not interrupts.came:
            self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def command(self, line: str) -> bool:
        """Run a /command; False ends the chat. Raises: InvalidRequest."""
        name, _, argument = line.partition(" ")
        if name not in COMMANDS:
            raise InvalidRequest(f"{name} is not a command; the commands are {', '.join(COMMANDS)}")
        if name in ("/media", "/save") and not argument:
            raise InvalidRequest(f"{name} takes a {'path' if name == '/media' else 'file'}: {name} NAME")
        path = Path(os.path.expanduser(argument.strip().strip("'\"")))
        try:
            if name == "/media":
                self._change_media(path)
            elif name == "/save":
                self._save(path)
            elif name == "/reset":
                self._messages = []
                note("(conversation forgotten)")
            elif name == "/help":
                note(HELP)
        except OSError as error:
            raise InvalidRequest(f"{name} {path}: {error.strerror}") from error
        return name != "/quit"

    def _change_media(self, path: Path) -> None:
        """Drop the options about the old media, except --with-audio if the new one is a video file too."""
        others = {name: value for name, value in self._options.items() if name not in ABOUT}
        options = with_media(others, path)
        options["with_audio"] = bool(self._options.get("with_audio")) and "video" in options and not path.is_dir()
        self._options = self._checked(options)
        self._messages = []
        note(f"(about {path}, from the beginning)")

    def _save(self, path: Path) -> None:
        if path.exists() and path.resolve() not in self._saved:
            raise InvalidRequest(f"{path} exists and was not written by this chat; name another file")
        about = {name: str(value) if name in KINDS else value for name, value in self.about.items()}
        content = {"media": about, "messages": self._messages}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
        self._saved.add(path.resolve())
        note(f"({len(self._messages)} messages in {path})")


def read_line(interactive: bool) -> str | None:
    """Return the next line, None at the end of the input."""
    if not interactive:
        return sys.stdin.readline().replace("\0", " ") or None  # a path must not hold a NUL
    try:
        return input("> ")
    except EOFError:
        click.echo()
        return None


def converse(client: Client, options: dict[str, Any]) -> int:
    """Run the conversation and return the exit code: 0 in a terminal, that of the last error for lines from a pipe."""
    if sys.stdin is None:  # closed by the caller
        raise InvalidRequest("there is no standard input to read questions from; give lines, or use a terminal")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    session = Chat(client, options)
    if interactive:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # input() then edits lines and recalls earlier ones
        about = next(
            (str(session.about[kind]) for kind in KINDS if kind in session.about), "no media; name one with /media PATH"
        )
        note(f"About {about}. /help lists the commands; Ctrl-D ends.")
    code = 0
    while True:
        try:
            line = read_line(interactive)
            if line is None or not session.take(line.strip()):
                break
        except VideoLlamaError as error:
            note(f"vl2: {error.kind}: {error}")
            code = error.exit_code
        except KeyboardInterrupt:  # outside an answer
            if not interactive:
                raise
            note("\n(Ctrl-D or /quit ends the chat)")
    return 0 if interactive else code


@click.command(
    short_help="Chat about a video, an image or audio, or without media.",
    epilog="Examples: vl2 chat clip.mp4; echo 'What happens?' | vl2 chat clip.mp4 --start 1.5",
)
@click.argument("media", required=False, type=click.Path(path_type=Path))
@question_options
@connection_options
def chat(media: Path | None, connection: dict[str, Any], **options: Any) -> int:
    """Chat about MEDIA (video, gif, folder of frames, image or audio), or without media: each line is a question.

    The conversation so far goes with each question. /help lists the commands for changing the media, starting over and
    saving. Lines may come from a pipe.
    """
    with Client(**connection) as client:
        return converse(client, options if media is None else with_media(options, media))
