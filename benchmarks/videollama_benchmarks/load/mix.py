"""Generates requests: kinds of media by weight, and a share of requests about media of earlier ones."""

import random
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from videollama_core.protocol.errors import InvalidRequest

KINDS = ("video", "image", "audio", "text")
QUESTIONS = {
    "video": "What happens in the video?",
    "image": "What is in the picture?",
    "audio": "What is heard?",
    "text": "What is a video?",
}
SUFFIXES = {
    "video": (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus"),
}
MAX_FILES = 64  # per kind; they are kept in memory
_KEPT = 8  # repeated requests choose among this many latest media of their kind


@dataclass(frozen=True)
class LoadRequest:
    """One request: `media` is None for text; `repeated` media was sent before in this run."""

    kind: str
    question: str
    media: bytes | None
    repeated: bool


def parse_mix(text: str) -> dict[str, float]:
    """Parse weights such as `video=3,text=1`. Raises: InvalidRequest."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        kind, _, weight = part.strip().partition("=")
        try:
            weights[kind] = float(weight or "1")
        except ValueError:
            weights[kind] = -1.0
        if kind not in KINDS or not 0 <= weights[kind] < float("inf"):
            raise InvalidRequest(f"--mix: {part!r} is not KIND=WEIGHT with one of the kinds {', '.join(KINDS)}")
    if not sum(weights.values()):
        raise InvalidRequest("--mix: all weights are 0; at least one must be positive")
    return weights


def find_media(paths: Sequence[Path], kinds: Sequence[str]) -> dict[str, list[bytes]]:
    """Read files, and the files of folders, by kind. Raises: InvalidRequest if a requested kind has none."""
    media_by_kind: dict[str, list[bytes]] = {kind: [] for kind in kinds if kind != "text"}
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            for kind, media in media_by_kind.items():
                if file.suffix.lower() in SUFFIXES[kind] and len(media) < MAX_FILES and file.is_file():
                    media.append(file.read_bytes())
    for kind, media in media_by_kind.items():
        if not media:
            raise InvalidRequest(
                f"--mix has {kind}, but {', '.join(map(str, paths))} has no such file; add one with --media"
            )
    return media_by_kind


def as_new(content: bytes, number: int) -> bytes:
    """The same media with different bytes, so that it misses every cache; decoders skip the bytes added at the end."""
    mark = struct.pack(">Q", number)
    if content[4:8] == b"ftyp":  # MP4: a box of free space
        return content + struct.pack(">I4s", 16, b"free") + mark
    if content[:4] == b"\x1a\x45\xdf\xa3":  # Matroska: a Void element
        return content + b"\xec\x88" + mark
    return content + mark


def make_requests(
    weights: dict[str, float], media: dict[str, list[bytes]], repeat: float, seed: int
) -> Iterator[LoadRequest]:
    """Generate requests without end. The same seed gives the same kinds, media and repetitions in the same order.

    Args:
        repeat: of the requests with media, the share that reuses media of an earlier one, 0 to 1.
    """
    draw = random.Random(seed)
    kinds, shares = zip(*weights.items(), strict=True)
    earlier_media: dict[str, list[bytes]] = {kind: [] for kind in media}
    # Random, so that new media is new to the server even with the same seed.
    base, number = secrets.randbits(40) << 20, 0
    while True:
        kind = draw.choices(kinds, shares)[0]
        if kind == "text":
            yield LoadRequest(kind, QUESTIONS[kind], None, False)
            continue
        earlier = earlier_media[kind]
        repeated = bool(earlier) and draw.random() < repeat
        if repeated:
            content = draw.choice(earlier)
        else:
            number += 1
            content = as_new(draw.choice(media[kind]), base + number)
            earlier.append(content)
            del earlier[:-_KEPT]
        yield LoadRequest(kind, QUESTIONS[kind], content, repeated)
