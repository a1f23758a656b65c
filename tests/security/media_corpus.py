"""Thousands of hostile media, made by a seed: case `number` is always the same file. `python -m security.media_corpus FOLDER`."""

import io
import itertools
import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from security.media_cases import OVER, Case, clip, encoded, gif, jpeg_with_scans, npy, png, wav

MEDIA = Path(__file__).parents[1] / "golden" / "media"
SEED = 20261129
KINDS = ("video", "image", "audio", "video_with_audio", "frames", "folder")
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
CLIPS = {
    "mp4": {},
    "mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "matroska": {"codec": "libx264"},
    "avi": {"codec": "mpeg4"},
    "mpegts": {"codec": "mpeg2video"},
    "webm": {"codec": "libvpx"},
    "flv": {"codec": "flv1"},
    "mxf": {"codec": "mpeg2video"},
    "nut": {"codec": "ffv1"},
}


@cache
def bases() -> dict[str, tuple[str, bytes]]:
    """Name -> kind and bytes, of media that can be read: small ones, so that a change hits what matters."""
    media = {name: ("video", clip(container=name, **options)) for name, options in CLIPS.items()}
    media["mp4 with sound"] = ("video_with_audio", clip(sound=True))
    media["fragmented mp4"] = ("video", clip(24, codec="libx264"))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"):
        media[format.lower()] = ("image", _noise(format))
    media["progressive jpeg"] = ("image", _noise("JPEG", progressive=True))
    media["animated gif"] = ("video", gif(12))
    for name in ("anim5_46x60.gif", "vfr_80x60.mp4", "odd_101x67.webm", "rotated90_96x64.mp4"):
        media[name] = ("video", (MEDIA / name).read_bytes())
    for format, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)):
        media[f"{format} {subtype}"] = ("audio", _tone(format, subtype))
    media["npy"] = ("frames", npy("(9, 6, 4, 3)", 648))
    return media


def _noise(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def _tone(format: str, subtype: str | None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(16000) / 9) * 0.5, 16000, subtype, format=format)
    return buffer.getvalue()


def _pick(random: np.random.Generator) -> tuple[str, str, bytes]:
    name = list(bases())[random.integers(len(bases()))]
    return name, *bases()[name]


# --- families: a generator of random numbers -> a case ------------------------------------------------------------------


def flipped(random: np.random.Generator) -> Case:
    name, kind, data = _pick(random)
    changed = np.frombuffer(data, np.uint8).copy()
    places = random.integers(0, len(changed), max(1, len(changed) // int(random.choice([20, 200, 2000]))))
    changed[places] = random.integers(0, 256, len(places))
    return Case(f"{name}, {len(places)} bytes changed", kind, (changed.tobytes(),))


def cut(random: np.random.Generator) -> Case:
    name, kind, data = _pick(random)
    if random.random() < 0.3:
        return Case(f"first bytes of {name}", kind, (data[: random.integers(1, 64)],))
    return Case(f"{name}, cut off", kind, (data[: random.integers(1, len(data))],))


def patched(random: np.random.Generator) -> Case:
    """A field of the header takes an extreme value."""
    name, kind, data = _pick(random)
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place, size = int(random.integers(0, min(len(data) - 8, 400))), int(random.choice([1, 2, 4]))
        order = str(random.choice(["little", "big"]))
        value = int(random.choice(EXTREMES)) % 256**size
        changed[place : place + size] = value.to_bytes(size, order)
    return Case(f"{name}, extreme fields", kind, (bytes(changed),))


ATOMS = b"stsz stco stts stss ctts stsc mvhd tkhd mdhd mp4v avc1 elst trun tfhd dref hdlr".split()


def atoms(random: np.random.Generator) -> Case:
    """A value of a box of an MP4 takes an extreme value, or the box its neighbour's name, or a size that lies."""
    name = str(
        random.choice(["mp4", "mov", "mp4 with sound", "fragmented mp4", "vfr_80x60.mp4", "rotated90_96x64.mp4"])
    )
    kind, data = bases()[name]
    changed = bytearray(data)
    present = [atom for atom in ATOMS if atom in data]
    for _ in range(random.integers(1, 3)):
        atom = present[random.integers(len(present))]
        place = data.index(atom)
        match random.integers(3):
            case 0:
                field = place + 4 + 4 * int(random.integers(0, 8))
                changed[field : field + 4] = struct.pack(">I", int(random.choice(EXTREMES)))
            case 1:
                changed[place : place + 4] = present[random.integers(len(present))]
            case _:
                changed[place - 4 : place] = struct.pack(">I", int(random.choice(EXTREMES)))
    return Case(f"{name}, boxes changed", kind, (bytes(changed),))


def spliced(random: np.random.Generator) -> Case:
    name, kind, data = _pick(random)
    one, two = sorted(int(place) for place in random.integers(0, len(data), 2))
    parts = {
        "a part twice": data[:two] + data[one:],
        "a part missing": data[:one] + data[two:],
        "zeros inside": data[:one] + bytes(two - one) + data[two:],
        "a part a thousand times": data[:one] + data[one : min(two, one + 64)] * 1000 + data[one:],
    }
    how = list(parts)[random.integers(len(parts))]
    return Case(f"{name}, {how}", kind, (parts[how],))


def mislabelled(random: np.random.Generator) -> Case:
    name, _, data = _pick(random)
    kind = str(random.choice(KINDS))
    return Case(f"{name} as {kind}", kind, (data,))


def polyglot(random: np.random.Generator) -> Case:
    (one, kind, data), (two, _, other) = _pick(random), _pick(random)
    both = data + other if random.random() < 0.5 else data[: random.integers(4, 40)] + other
    return Case(f"{one} and {two} in one", kind, (both,))


PLAYLISTS = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile {}\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{}\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{}</BaseURL></Period></MPD>',
    '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}"/></svg>',
    "RTSPtext\nrtsptext://{}\n",
    "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({}) run showpage\n",
)
TARGETS = (
    "file:///etc/passwd",
    "/etc/passwd",
    "http://127.0.0.1:1/",
    "concat:/etc/passwd|/etc/group",
    "subfile,,start,0,end,9,,:/etc/passwd",
    "pipe:0",
)


def playlist(random: np.random.Generator) -> Case:
    text, target = str(random.choice(PLAYLISTS)), str(random.choice(TARGETS))
    return Case(f"playlist naming {target}", str(random.choice(KINDS[:4])), (text.format(target).encode(),))


def picture_bomb(random: np.random.Generator) -> Case:
    width, height = (int(side) for side in random.choice([1, 3, 99, 640, 5000, 32768, 65535, 10**6], 2))
    makers: list[Callable[[], bytes]] = [
        partial(png, width, height, int(min(height, 64))),
        partial(gif, int(random.integers(1, 40)), then=((width % 65536, height % 65536),)),
        partial(jpeg_with_scans, int(random.choice([16, 256, 1024])), int(random.choice([20, 300, 3000]))),
        partial(_patched_jpeg, width % 65536, height % 65536),
        partial(encoded, (max(width % 700, 1), max(height % 700, 1)), str(random.choice(["PNG", "WEBP", "TIFF"]))),
    ]
    kind = str(random.choice(["image", "video", "folder"]))
    return Case(f"picture of {width}x{height}", kind, (makers[random.integers(len(makers))](),))


def _patched_jpeg(width: int, height: int) -> bytes:
    data = bytearray(_noise("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def sound_lie(random: np.random.Generator) -> Case:
    rate, channels = (
        int(random.choice([0, 1, 999, 8000, 48000, 10**6, 2**31])),
        int(random.choice([0, 1, 2, 65, 65535])),
    )
    data = bytearray(wav(rate, channels, 0.01, int(random.choice([0, 1, 8, 16, 24, 64]))))
    data[20:22] = struct.pack("<H", int(random.choice([1, 3, 6, 0x11, 0x55, 0xFFFE, 0])))
    data[40:44] = struct.pack("<I", int(random.choice(EXTREMES)))
    start = random.choice([None, 0.5, 1e7])
    return Case(f"wav of {channels} channels at {rate} Hz", "audio", (bytes(data),), start)


def array_lie(random: np.random.Generator) -> Case:
    shape = tuple(int(side) for side in random.choice([-1, 0, 1, 3, 4, 10**6, 2**31, 2**62], random.integers(0, 6)))
    descr = str(random.choice(["'|u1'", "'<f4'", "'|O'", "'|V9'", "[('a', '|u1')]", "'<U9'"]))
    count = int(random.choice([0, 1, 144, 100_000]))
    return Case(f"npy {shape} of {descr}", "frames", (npy(str(shape), count, descr),))


def clip_lie(random: np.random.Generator) -> Case:
    size = tuple(int(side) for side in random.choice([2, 16, 98, 1000, 2000], 2))
    rate = int(random.choice([1, 25, 1000, 65535]))
    codec = str(random.choice(["mpeg4", "libx264", "mjpeg", "libvpx-vp9"]))
    options = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {}
    start = random.choice([None, 0.0, 0.1, 5.0, 1e8, 1e300])
    data = clip(int(random.integers(1, 5)), size, "matroska", rate, codec=codec, **options)
    return Case(
        f"{codec} of {size[0]}x{size[1]} at {rate} a second", "video", (data,), start, random.choice([None, 1e8])
    )


def many_files(random: np.random.Generator) -> Case:
    files = tuple(_pick(random)[2] for _ in range(random.integers(2, 6)))
    return Case("files of several kinds", str(random.choice(KINDS)), files)


FAMILIES = (
    flipped, patched, atoms, cut, spliced, mislabelled, polyglot, playlist, picture_bomb, sound_lie, array_lie, clip_lie,
    flipped, atoms, patched, many_files,
)  # fmt: skip


def case(number: int, seed: int = SEED) -> Case:
    random = np.random.default_rng([seed, number])
    made = FAMILIES[number % len(FAMILIES)](random)
    return Case(f"{number}: {made.name}", made.kind, made.files, made.start, made.end)


def corpus(count: int, seed: int = SEED) -> Iterator[Case]:
    """The named cases that demand too much, then as many generated ones as needed to reach the total."""
    named = [Case.made(name, OVER) for name in OVER if "hour" not in name]
    yield from itertools.islice(itertools.chain(named, (case(number, seed) for number in itertools.count())), count)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number, made in enumerate(corpus(2000)):
        for position, file in enumerate(made.files):
            (folder / f"{number:04d}-{made.kind}-{position}").write_bytes(file)
