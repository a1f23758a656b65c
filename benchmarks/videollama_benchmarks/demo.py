"""The command `vl2 demo`: converts, serves and queries the checkpoint that this source tree ships."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from videollama_benchmarks.contact_sheet import draw_contact_sheet, read_strip
from videollama_benchmarks.tasks.items import Item
from videollama_benchmarks.tasks.shapes import load_shapes, read_shapes
from videollama_client import Answer, Client, QuestionOptions
from videollama_core.protocol.errors import ServerFailed

_TREE = Path(__file__).parents[2]
CHECKPOINT = _TREE / "training/checkpoints/tiny-shapes"
HELD_OUT = _TREE / "benchmarks/shapes"
_OUT = _TREE / "build/demo"
TOPICS = ("motion", "order", "change", "appearance", "count", "colour", "description")


@dataclass(frozen=True)
class AnsweredItem:
    """A question of the demo and its answer."""

    item: Item
    answer: Answer

    @property
    def right(self) -> bool | None:
        """None if the item has no true answer."""
        return None if self.item.truth is None else read_shapes(self.item, [self.answer.text]).right


@click.command(
    epilog="Example: vl2 demo --checkpoint VideoLLaMA2.1-7B-16F --video cat.mp4 --question 'What does it do?'"
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=CHECKPOINT,
    help="Convert this checkpoint; the default is tiny-shapes, which was trained only on moving shapes.",
)
@click.option("--video", type=click.Path(path_type=Path), help="Ask about this video instead of the held-out clips.")
@click.option(
    "--question",
    "questions",
    multiple=True,
    default=("What happens in the video?",),
    help="Ask this question about --video. Repeat the option for more questions.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=_OUT, help="Write the converted checkpoint to this folder."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=48,
    show_default=True,
    help="Limit each answer to this many tokens.",
)
def demo(checkpoint: Path, video: Path | None, questions: tuple[str, ...], out: Path, max_new_tokens: int) -> None:
    """Convert a small checkpoint, start a Triton server on it, and ask it about held-out clips."""
    for path in (checkpoint, video or HELD_OUT):
        if not path.exists():
            raise click.UsageError(
                f"{path} is missing; run the demo in the source tree, or give --checkpoint and --video"
            )
    # Let a conversion or server end with the demo, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    items = choose_items() if video is None else [Item(text, "video", video, (text,), None) for text in questions]
    _say(f"vl2 convert {_short(checkpoint)} --out {_short(out)}")
    command = [*_vl2(), "convert", str(checkpoint), "--out", str(out)]
    converted = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if converted.returncode:  # it has said why
        raise SystemExit(converted.returncode)
    _say(f"vl2 serve {_short(out)} --grpc-port 0")
    ports = ("--grpc-port", "0")
    server = subprocess.Popen([*_vl2(), "serve", str(out), *ports], stdout=subprocess.PIPE, text=True)
    try:
        address = _wait_for_address(server)
        with Client(address) as client:
            answered = [_ask(client, address, item, max_new_tokens) for item in items]
            _say(f"vl2 ask {_short(items[0].media)} {items[0].questions[0].splitlines()[0]!r}   (the same clip again)")
            _print_times(client.ask(items[0].questions[0], **_options(items[0], max_new_tokens)))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    _sum_up(answered, out)


def choose_items(folder: Path = HELD_OUT) -> list[Item]:
    """The first open question of each topic in the held-out set, each about a different clip."""
    chosen: dict[str, Item] = {}
    used: set[Path] = set()
    for item in load_shapes(folder):
        topic = item.groups["topic"]
        is_open = item.kind == "video" and item.groups["form"] in ("open", "description")
        if is_open and topic in TOPICS and topic not in chosen and item.media not in used:
            chosen[topic] = item
            used.add(item.media)
    return [chosen[topic] for topic in TOPICS if topic in chosen]


def _options(item: Item, max_new_tokens: int) -> QuestionOptions:
    return {"video": item.media, "max_new_tokens": max_new_tokens}


def _ask(client: Client, address: str, item: Item, max_new_tokens: int) -> AnsweredItem:
    question = item.questions[0]
    _say(f'vl2 ask {_short(item.media)} "{question}" --url {address}')
    began = time.monotonic()
    first = None
    if item.truth is not None:
        click.echo(f"  true answer  {item.truth}")
    click.echo("  answer       ", nl=False)
    stream = client.stream(question, **_options(item, max_new_tokens))
    for piece in stream:
        first = first or time.monotonic() - began
        click.echo(piece, nl=False)
        sys.stdout.flush()
    ended = time.monotonic() - began
    answered = AnsweredItem(item, stream.answer)
    mark = {True: "   right", False: "   WRONG", None: ""}[answered.right]
    click.secho(mark, fg="green" if answered.right else "red")
    usage = answered.answer.usage
    click.echo(
        f"  {usage.media_tokens} media + {usage.prompt_tokens} text tokens in, {usage.completion_tokens} out, "
        f"first text after {1000 * (first or 0.0):.0f} ms, complete after {1000 * ended:.0f} ms"
    )
    return answered


def _print_times(answer: Answer) -> None:
    """One bar per stage, all on the same scale."""
    stages = {name: seconds for name, seconds in answer.seconds.items() if name not in ("perception", "total")}
    longest = max(stages.values()) or 1
    for name, seconds in stages.items():
        note = "  (cached: not run again)" if seconds == 0 and name in ("preprocess", "encoder") else ""
        click.echo(f"  {name:12}{1000 * seconds:9.1f} ms  {'#' * round(40 * seconds / longest)}{note}")
    click.echo(f"  {'total':12}{1000 * answer.seconds['total']:9.1f} ms")


def _sum_up(answered: Sequence[AnsweredItem], out: Path) -> None:
    """Print how many answers were right, and write the contact sheet."""
    num_frames = json.loads((out / "manifest.json").read_text("utf-8"))["model"]["num_frames"]
    strips = []
    for result in answered:
        lines = [(result.item.questions[0], "black")]
        if result.item.truth is not None:
            lines.append((f"true answer: {result.item.truth}", "dimgray"))
        lines.append((f"answer: {result.answer.text}", "darkred" if result.right is False else "darkgreen"))
        strips.append(read_strip(result.item.media, num_frames, lines))
    sheet = out / "contact_sheet.png"
    draw_contact_sheet(strips, sheet)
    scored = [result for result in answered if result.right is not None]
    click.echo("")
    if scored:
        right = sum(bool(result.right) for result in scored)
        click.echo(f"{right} of {len(scored)} right, about held-out clips.")
    click.echo(f"The frames that the model was given: {_short(sheet)}")
    click.echo("To ask in a browser, at http://localhost:8080/:")
    click.echo(f"  .venv/bin/vl2 serve {_short(out)} --openai 8080 --examples {_short(HELD_OUT / 'held_out')}")


def _wait_for_address(server: "subprocess.Popen[str]") -> str:
    address = ""
    assert server.stdout is not None
    for line in server.stdout:
        click.echo(f"  {line}", nl=False)
        if line.startswith("gRPC"):
            address = line.split()[1]
        if line.startswith("ready"):
            return address
    raise ServerFailed("the server did not start; its output above says why")


def _vl2() -> list[str]:
    return [sys.executable, "-m", "videollama_client"]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _say(command: str) -> None:
    click.secho(f"\n$ {command}", bold=True)
    sys.stdout.flush()
