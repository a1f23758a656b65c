"""The command `vl2` and its subcommands. Results go to stdout, progress and errors to stderr."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from videollama_client import Client
from videollama_client.cli.chat import chat
from videollama_client.cli.connection_options import connection_options
from videollama_client.cli.question_options import question_options, with_media
from videollama_core.protocol.errors import VideoLlamaError

# Commands of the other packages, imported when called: the bare install contains only the client.
_OTHER_COMMANDS = {
    "convert": ("videollama_converters.cli", "convert", "Convert a checkpoint into a folder that `vl2 serve` takes."),
    "plan": ("videollama_converters.cli", "plan", "List the GPUs that each published checkpoint needs."),
    "doctor": ("videollama_server.doctor", "doctor", "Check whether this machine can serve; report what is missing."),
    "serve": ("videollama_server.cli", "serve", "Start a Triton server on a converted checkpoint."),
    "train": ("videollama_training.cli", "train", "Train a checkpoint on your own data."),
    "shapes": ("videollama_training.shapes.cli", "shapes", "Generate a data set of moving shapes."),
    "bench": ("videollama_benchmarks.load.cli", "bench", "Load-test a server and measure its answers."),
    "gateway": ("videollama_gateway.cli", "gateway", "Serve the OpenAI API in front of running servers."),
    "eval": ("videollama_benchmarks.cli", "evaluate", "Evaluate answers on a benchmark."),
    "demo": ("videollama_benchmarks.demo", "demo", "Convert, serve and ask in one command."),
}


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_OTHER_COMMANDS])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _OTHER_COMMANDS:
            return super().get_command(context, name)
        module, attribute, _ = _OTHER_COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List all commands without importing the other packages."""
        own = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        rows = own | {name: text for name, (_, _, text) in _OTHER_COMMANDS.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="videollama2-service")
def main_group() -> None:
    """Ask VideoLLaMA 2 about video, images, audio and text through a Triton server.

    \b
    vl2 convert CHECKPOINT --out build/NAME
    vl2 serve build/NAME
    vl2 ask clip.mp4 "What happens?"
    """


@main_group.command(
    short_help="Ask a question about a video, an image or audio, or without media.",
    epilog='Example: vl2 ask clip.mp4 "What happens?" --start 1.5 --end 4',
)
@click.argument("words", nargs=-1, required=True, metavar="[MEDIA] QUESTION")
@question_options
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming text.")
def ask(words: tuple[str, ...], connection: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Ask QUESTION about MEDIA (video, gif, folder of frames, image or audio), or without media."""
    if len(words) > 2:
        raise click.UsageError(f"expected [MEDIA] QUESTION, found {len(words)} arguments; put the question in quotes")
    *media, question = words
    if media:
        options = with_media(options, Path(media[0]))
    with Client(**connection) as client:
        stream = client.stream(question, **options)
        for piece in stream:
            if not as_json:
                click.echo(piece, nl=False)
                sys.stdout.flush()
        click.echo(json.dumps(dataclasses.asdict(stream.answer), ensure_ascii=False) if as_json else "")


main_group.add_command(chat)


@main_group.command()
@connection_options
@click.option(
    "--wait", "seconds", type=float, default=0.0, help="Wait at most this many seconds for the server to become ready."
)
def health(connection: dict[str, Any], seconds: float) -> None:
    """Check whether a server is ready to answer questions."""
    with Client(**connection) as client:
        client.wait_until_ready(seconds)
    click.echo(f"{connection['address']} is ready")


def run(command: Callable[..., Any]) -> int:
    """Run a command and return its exit code; an error is printed as one line."""
    try:
        code = command(standalone_mode=False)
    except VideoLlamaError as error:
        click.echo(f"vl2: {error.kind}: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except ModuleNotFoundError as error:
        click.echo(
            f"vl2: this command needs the package {error.name}, which the bare install (the client) does not include; "
            "pip install 'videollama2-service[convert]', or '.[convert]' in the source tree",
            err=True,
        )
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        click.echo(f"vl2: {error.filename or ''}: {error.strerror or error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def main() -> None:
    sys.exit(run(main_group))
