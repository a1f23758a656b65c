"""The question options on the command line, shared by every command that asks."""

from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any

import click

from videollama_client.media import SOURCES
from videollama_core.protocol.contract import IMAGE_SUFFIXES, SAMPLINGS
from videollama_core.protocol.messages import number_options

# Kinds by file suffix; everything else is a video.
SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aiff", ".amr", ".wma"},
}
KINDS = SOURCES
ABOUT = (*KINDS, "with_audio", "start", "end", "num_frames", "sampling")  # the media and the options that apply to it


def _number(option: "Field[Any]") -> Callable[..., Any]:
    """The option for a number, with its name, type and meaning from `SamplingOptions`."""
    _, _, whole, _ = option.metadata["range"]
    name = "--" + option.name.replace("_", "-")
    return click.option(name, type=int if whole else float, help=option.metadata["meaning"])


_OPTIONS = (
    click.option(
        "--video", type=click.Path(path_type=Path), help="Ask about this video file, gif, or folder of frames."
    ),
    click.option("--image", type=click.Path(path_type=Path), help="Ask about this picture."),
    click.option("--audio", type=click.Path(path_type=Path), help="Ask about this audio file; 30 s of it are used."),
    click.option("--video-url", help="Let the server fetch a video from this URL, if its operator allows it."),
    click.option("--image-url", help="Let the server fetch an image from this URL, if its operator allows it."),
    click.option("--audio-url", help="Let the server fetch an audio file from this URL, if its operator allows it."),
    click.option("--with-audio", is_flag=True, help="Use the video's audio track as well."),
    click.option("--start", type=float, help="Use the video or audio from this second on."),
    click.option("--end", type=float, help="Use the video or audio up to this second."),
    click.option("--num-frames", type=int, help="Sample this many frames of the video, 32 at most."),
    click.option(
        "--sampling",
        type=click.Choice(SAMPLINGS),
        help="With keyframes, use the keyframes nearest to the sampled frames: faster, but approximate.",
    ),
    *(_number(option) for option in number_options()),
    click.option("--stop", multiple=True, help="End the answer before this string; may be repeated."),
    click.option("--timeout", type=float, help="Give up after this many seconds."),
)


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add every option that `Client.stream` takes as a keyword argument to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_media(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """Add a media file given as a positional argument to the options, with its kind from its suffix."""
    if any(options.get(kind) for kind in KINDS):
        raise click.UsageError("name the media once: as the first argument, or with --video, --image or --audio")
    kind = next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), "video")
    return options | {kind: path}
