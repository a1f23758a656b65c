"""`vl2 demo`: what a user does, command by command, on what this source tree ships."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from videollama_client import Answer, Client
from videollama_core.errors import ServerFailed

_TREE = Path(__file__).parents[2]
_CHECKPOINT = _TREE / "tests/golden/qwen2-siglip-16f/checkpoint"
_VIDEO = _TREE / "tests/golden/media/sample_demo_1.mp4"
_OUT = _TREE / "build/demo"
_QUESTIONS = ("What is happening in this video?", "Which colours does it show?")


@click.command(epilog="Example: vl2 demo --video holiday.mp4 --question 'Who is in it?'")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=_CHECKPOINT,
    help="Checkpoint to convert; default: a tiny one with random weights.",
)
@click.option("--video", type=click.Path(path_type=Path), default=_VIDEO, help="Video to ask about.")
@click.option("--question", "questions", multiple=True, default=_QUESTIONS, help="May be repeated.")
@click.option("--out", type=click.Path(path_type=Path), default=_OUT, help="Where the converted checkpoint goes.")
@click.option("--max-new-tokens", default=48, show_default=True)
def demo(checkpoint: Path, video: Path, questions: tuple[str, ...], out: Path, max_new_tokens: int) -> None:
    """Convert a small checkpoint, start a real Triton server on it, and ask it about a real video."""
    for path in (checkpoint, video):
        if not path.exists():
            raise click.UsageError(
                f"{path} is missing; run the demo in the source tree, or name --checkpoint and --video"
            )
    _say(f"vl2 convert {_short(checkpoint)} --out {_short(out)}")
    subprocess.run([*_vl2(), "convert", str(checkpoint), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    _say(f"vl2 serve {_short(out)} --grpc-port 0 --http-port 0 --metrics-port 0")
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    server = subprocess.Popen([*_vl2(), "serve", str(out), *ports], stdout=subprocess.PIPE, text=True)
    try:
        address = _wait_for_address(server)
        with Client(address) as client:
            for question in questions:
                _ask(client, address, video, question, max_new_tokens)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    if checkpoint == _CHECKPOINT:
        click.echo(
            "\nThe weights of this tiny checkpoint are random, so its words mean nothing; the pipeline is the real one, and"
        )
        click.echo(
            "its answers equal the reference implementation's token by token (make test shows it). Next: README.md."
        )


def _ask(client: Client, address: str, video: Path, question: str, max_new_tokens: int) -> None:
    _say(f'vl2 ask {_short(video)} "{question}" --url {address}')
    began = time.monotonic()
    first = None
    stream = client.stream(question, video=video, max_new_tokens=max_new_tokens)
    for piece in stream:
        first = first or time.monotonic() - began
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo("\n")
    _print_times(stream.answer, first or 0.0)


def _print_times(answer: Answer, first: float) -> None:
    """A bar per stage; bars share one scale."""
    usage = answer.usage
    click.echo(
        f"  {usage.media_tokens} media + {usage.prompt_tokens} text tokens in, {usage.completion_tokens} out, "
        f"ended by {answer.finish_reason}; first text after {1000 * first:.0f} ms"
    )
    stages = {name: seconds for name, seconds in answer.seconds.items() if name not in ("perception", "total")}
    longest = max(stages.values()) or 1
    for name, seconds in stages.items():
        note = "  (cached: not run again)" if seconds == 0 and name in ("preprocess", "encoder") else ""
        click.echo(f"  {name:12}{1000 * seconds:9.1f} ms  {'#' * round(40 * seconds / longest)}{note}")
    click.echo(f"  {'total':12}{1000 * answer.seconds['total']:9.1f} ms")


def _wait_for_address(server: "subprocess.Popen[str]") -> str:
    address = ""
    assert server.stdout is not None
    for line in server.stdout:
        click.echo(f"  {line}", nl=False)
        if line.startswith("gRPC"):
            address = line.split()[1]
        if line.startswith("ready"):
            return address
    raise ServerFailed("the server did not start; its reason stands above")


def _vl2() -> list[str]:
    return [sys.executable, "-m", "videollama_client"]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _say(command: str) -> None:
    click.secho(f"\n$ {command}", bold=True)
    sys.stdout.flush()
