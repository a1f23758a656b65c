"""The options of a question on the command line: the same for each command that asks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from videollama_core.protocol.contract import IMAGE_SUFFIXES

# What a file's name says it is; everything else is a video.
SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aiff", ".wma"},
}
KINDS = ("video", "image", "audio")
ABOUT = (*KINDS, "with_audio", "start", "end")  # options that belong to one medium

_OPTIONS = (
    click.option("--video", type=click.Path(path_type=Path), help="Video file, gif, or folder of frames."),
    click.option("--image", type=click.Path(path_type=Path), help="Picture."),
    click.option("--audio", type=click.Path(path_type=Path), help="Audio file; 30 s of it are used."),
    click.option("--with-audio", is_flag=True, help="Use the video's audio track as well."),
    click.option("--start", type=float, help="Seconds: first moment of the video or audio to use."),
    click.option("--end", type=float, help="Seconds: last moment to use."),
    click.option("--max-new-tokens", type=int, help="At most this many tokens."),
    click.option("--temperature", type=float, help="0 is greedy, and the default."),
    click.option("--top-p", type=float, help="Nucleus of the sampling."),
    click.option("--top-k", type=int, help="Only the best K tokens; 0 is off."),
    click.option("--seed", type=int, help="Same seed, same text."),
    click.option("--repetition-penalty", type=float, help="1 is off; default: the checkpoint's own."),
    click.option("--vcd-alpha", type=float, help="Visual contrastive decoding: weight of the contrast; 0 is off."),
    click.option(
        "--vcd-beta", type=float, help="VCD: keep tokens at least BETA times as likely as the best; default 0.1."
    ),
    click.option("--vcd-noise-step", type=int, help="VCD: diffusion steps of the noise, 0 to 999; default 500."),
    click.option("--stop", multiple=True, help="End the text before this string; may be repeated."),
    click.option("--timeout", type=float, help="Seconds until the request is given up."),
    click.option("--url", default="localhost:8001", show_default=True, help="host:port of the server's gRPC port."),
)


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with --url and every option that `Client.stream` takes as a keyword argument."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_media(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """The options with a medium that was named as a word, of the kind that its name says."""
    if any(options.get(kind) for kind in KINDS):
        raise click.UsageError("name the media once: as the first word, or with --video, --image or --audio")
    kind = next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), "video")
    return options | {kind: path}
