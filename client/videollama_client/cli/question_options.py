"""The options of a question on the command line: the same for each command that asks."""

from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any

import click

from videollama_client.media import SOURCES
from videollama_core.protocol.contract import IMAGE_SUFFIXES, SAMPLINGS
from videollama_core.protocol.messages import number_options

# What a file's name says it is; everything else is a video.
SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "audio": {".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aiff", ".wma"},
}
KINDS = SOURCES
ABOUT = (*KINDS, "with_audio", "start", "end", "num_frames", "sampling")  # options that belong to one medium


def _number(option: "Field[Any]") -> Callable[..., Any]:
    """The option of a number, by its name, type and meaning in `SamplingOptions`."""
    _, _, whole, _ = option.metadata["range"]
    name = "--" + option.name.replace("_", "-")
    return click.option(name, type=int if whole else float, help=option.metadata["meaning"])


_OPTIONS = (
    click.option(
        "--video", type=click.Path(path_type=Path), help="Ask about this video file, gif, or folder of frames."
    ),
    click.option("--image", type=click.Path(path_type=Path), help="Ask about this picture."),
    click.option("--audio", type=click.Path(path_type=Path), help="Ask about this audio file, of which 30 s are used."),
    click.option("--video-url", help="Let the server fetch a video from this URL, where its operator allows it."),
    click.option("--image-url", help="Let the server fetch an image from this URL, likewise."),
    click.option("--audio-url", help="Let the server fetch an audio file from this URL, likewise."),
    click.option("--with-audio", is_flag=True, help="Use the video's audio track as well."),
    click.option("--start", type=float, help="Use the video or audio from this second on."),
    click.option("--end", type=float, help="Use the video or audio up to this second."),
    click.option("--num-frames", type=int, help="Look at so many frames of the video, 32 at most."),
    click.option(
        "--sampling",
        type=click.Choice(SAMPLINGS),
        help="With keyframes, take those nearest to the wanted frames: sooner and not exact.",
    ),
    *(_number(option) for option in number_options()),
    click.option("--stop", multiple=True, help="End the text before this string; may be repeated."),
    click.option("--timeout", type=float, help="Give the request up after this many seconds."),
)


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with every option that `Client.stream` takes as a keyword argument."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_media(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """The options with a medium that was named as a word, of the kind that its name says."""
    if any(options.get(kind) for kind in KINDS):
        raise click.UsageError("name the media once: as the first word, or with --video, --image or --audio")
    kind = next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), "video")
    return options | {kind: path}
