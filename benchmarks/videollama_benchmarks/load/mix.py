"""What is asked: kinds of media by weight, and a share of media that was asked about before."""

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
MAX_FILES = 64  # of a kind; they are kept in memory
_KEPT = 8  # the latest media of a kind that a repeated request is about


@dataclass(frozen=True)
class Ask:
    """One request: `media` is None for text; `repeated` media was asked about before in this run."""

    kind: str
    question: str
    media: bytes | None
    repeated: bool


def parse_mix(text: str) -> dict[str, float]:
    """`video=3,text=1` -> weights. Raises: InvalidRequest."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        kind, _, weight = part.strip().partition("=")
        try:
            weights[kind] = float(weight or "1")
        except ValueError:
            weights[kind] = -1.0
        if kind not in KINDS or not 0 <= weights[kind] < float("inf"):
            raise InvalidRequest(f"--mix: found {part!r}; wanted KIND=WEIGHT with a kind of {', '.join(KINDS)}")
    if not sum(weights.values()):
        raise InvalidRequest("--mix: every weight is 0")
    return weights


def find_media(paths: Sequence[Path], kinds: Sequence[str]) -> dict[str, list[bytes]]:
    """Files and the files of folders, by kind. Raises: InvalidRequest where a kind that is asked for has none."""
    found: dict[str, list[bytes]] = {kind: [] for kind in kinds if kind != "text"}
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in files:
            for kind, media in found.items():
                if file.suffix.lower() in SUFFIXES[kind] and len(media) < MAX_FILES and file.is_file():
                    media.append(file.read_bytes())
    for kind, media in found.items():
        if not media:
            raise InvalidRequest(
                f"--mix asks for {kind}, and no file of {', '.join(map(str, paths))} is one; name more --media"
            )
    return found


def as_new(content: bytes, number: int) -> bytes:
    """The same media as other bytes: decoded alike, and met by no cache. Readers pass over what is added at the end."""
    mark = struct.pack(">Q", number)
    if content[4:8] == b"ftyp":  # an MP4 box that readers skip
        return content + struct.pack(">I4s", 16, b"free") + mark
    if content[:4] == b"\x1a\x45\xdf\xa3":  # a Void element of Matroska
        return content + b"\xec\x88" + mark
    return content + mark


def make_asks(weights: dict[str, float], media: dict[str, list[bytes]], repeat: float, seed: int) -> Iterator[Ask]:
    """Endless. The same seed gives the same kinds, media and repetitions in the same order.

    Args:
        repeat: share of the requests with media that is about media of an earlier one, 0 to 1.
    """
    draw = random.Random(seed)
    kinds, shares = zip(*weights.items(), strict=True)
    asked: dict[str, list[bytes]] = {kind: [] for kind in media}
    base, number = secrets.randbits(40) << 20, 0  # of each run: its new media is new to the server, whatever the seed
    while True:
        kind = draw.choices(kinds, shares)[0]
        if kind == "text":
            yield Ask(kind, QUESTIONS[kind], None, False)
            continue
        earlier = asked[kind]
        repeated = bool(earlier) and draw.random() < repeat
        if repeated:
            content = draw.choice(earlier)
        else:
            number += 1
            content = as_new(draw.choice(media[kind]), base + number)
            earlier.append(content)
            del earlier[:-_KEPT]
        yield Ask(kind, QUESTIONS[kind], content, repeated)
