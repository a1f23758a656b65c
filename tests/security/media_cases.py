"""Media that demand far more than their size: small files whose decoding would exhaust a machine, each generated in code."""

import io
import struct
import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import av
import numpy as np
import soundfile
from PIL import Image


@dataclass(frozen=True)
class Case:
    name: str
    kind: str  # one of contract.MEDIA_KINDS
    files: tuple[bytes, ...] = field(repr=False)
    start: float | None = None
    end: float | None = None

    @classmethod
    def made(cls, name: str, table: dict[str, tuple]) -> "Case":
        kind, make, *start = table[name]
        return cls(name, kind, (make(),), *start)


# --- pictures ------------------------------------------------------------------------------------------------------------


def encoded(size: tuple[int, int], format: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 128).save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: int | None = None) -> bytes:
    """Black, one bit per pixel; only `rows` of it if the header promises more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join([packer.compress(row) for _ in range(height if rows is None else rows)]) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def jpeg_with_scans(side: int, scans: int) -> bytes:
    """A progressive jpeg that repeats its last pass over the picture."""
    data = encoded((side, side), "JPEG", "L", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def slow_pictures(number: int) -> list[bytes]:
    """Within every limit, yet about two seconds each."""
    return [jpeg_with_scans(1500, 230)] * number


def gif(frames: int, screen: tuple[int, int] = (8, 8), then: tuple[tuple[int, int], ...] = ()) -> bytes:
    """That many frames of 8x8 on a screen, and then some of other sizes."""
    small = encoded((8, 8), "GIF", "P")
    start = small.index(b"\x2c")
    header = small[:6] + struct.pack("<HH", *screen) + small[10:start]
    block = small[start:-1]
    sized = b"".join(block[:5] + struct.pack("<HH", *size) + block[9:] for size in then)
    return header + block * frames + sized + b";"


def npy(shape: str, values: int, descr: str = "'|u1'") -> bytes:
    """A header that says `shape`, followed by that many bytes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(values)


# --- sounds and videos ---------------------------------------------------------------------------------------------------


def wav(rate: int, channels: int, seconds: float, bits: int = 8) -> bytes:
    size = min(int(rate * seconds) * channels * bits // 8, 2**26)
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, min(rate * block, 2**32 - 1), block % 2**16, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size) + bytes(size)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def flac(hours: float, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, "PCM_16", format="FLAC") as file:
        silence, left = np.zeros(2**22, np.int16), int(hours * 3600 * rate)
        while left > 0:
            file.write(silence[:left])
            left -= len(silence)
    return buffer.getvalue()


def mov_of_pictures(tracks: int, side: int) -> bytes:
    """Tracks of one png each."""
    picture, buffer = png(side, side), io.BytesIO()
    with av.open(buffer, "w", "mov") as container:
        streams = [container.add_stream("png", rate=1, width=side, height=side, pix_fmt="monob") for _ in range(tracks)]
        for stream in streams:
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
            packet.time_base = Fraction(1, 1)
            container.mux(packet)
    return buffer.getvalue()


def clip(
    frames: int = 12, size: tuple[int, int] = (64, 48), container: str = "mp4", rate: int = 25, **streams
) -> bytes:
    """A short video; `sound=True` adds a track, `codec` names another than MPEG-4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", container, container_options={"fflags": "+bitexact"}) as file:
        video = file.add_stream(streams.get("codec", "mpeg4"), rate=rate)
        video.width, video.height, video.pix_fmt = *size, streams.get("pix_fmt", "yuv420p")
        if streams.get("sound"):
            sound = file.add_stream("aac", rate=16000, layout="mono")
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), number * 20 % 256, np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        if streams.get("sound"):
            tone = (np.sin(np.arange(16000) / 5) * 9000).astype(np.int16)[None]
            part = av.AudioFrame.from_ndarray(tone, "s16", "mono")
            part.sample_rate, part.pts = 16000, 0
            file.mux(sound.encode(part))
            file.mux(sound.encode(None))
        file.mux(video.encode(None))
    return buffer.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n0 0 moveto showpage\n%%EOF\n"

# Name -> kind, maker and start. Each asks for gigabytes, or minutes; all are refused.
OVER: dict[str, tuple] = {
    "png of 1x32768": ("image", partial(png, 1, 32768)),
    "png of 30000x30000": ("image", partial(png, 30000, 30000, rows=1)),
    "png of 2^31 x 2^31": ("image", partial(png, 2**31 - 1, 2**31 - 1, rows=1)),
    "png of 100 MP": ("image", partial(png, 10000, 10000)),
    "jpeg with 2,000 scans": ("image", partial(jpeg_with_scans, 2400, 2000)),
    "gif that grows to 13000x13000": ("video", partial(gif, 4, then=((13000, 13000),) * 4)),
    "gif that grows, as an image": ("image", partial(gif, 0, then=((13000, 13000),))),
    "gif of 20,000 frames": ("video", partial(gif, 20_000)),
    "gif of 6,000 large frames": ("video", partial(gif, 6_000, (2000, 2000))),
    "npy of 1,000,000x1,000x1,000": ("frames", partial(npy, "(1000000, 1000, 1000, 3)", 3)),
    "npy of 2^62 pictures": ("frames", partial(npy, f"({2**62}, 4, 4, 3)", 48)),
    "npy with a negative side": ("frames", partial(npy, "(-1, 4, 4, 3)", 48)),
    "npy of Python objects": ("frames", partial(npy, "(4, 4, 3)", 48, "'|O'")),
    "npy header of 60,000 brackets": ("frames", lambda: b"\x93NUMPY\x01\x00\x60\xea" + b"(" * 60_000),
    "npy that is cut off": ("frames", partial(npy, "(2, 4, 4, 3)", 95)),
    "PostScript": ("image", lambda: POSTSCRIPT),
    "wav of 65,535 channels": ("audio", partial(wav, 8000, 65535, 0.1)),
    "wav without a rate": ("audio", partial(wav, 0, 1, 1)),
    "wav of 2^31 samples per second": ("audio", partial(wav, 2**31, 1, 1e-4)),
    "sound of 24 hours asked as a video": ("video_with_audio", partial(flac, 24, 1000)),
    "mov of 8 tracks of 16000x16000": ("video", partial(mov_of_pictures, 8, 16000)),
    "mov of 70 tracks": ("video", partial(mov_of_pictures, 70, 64)),
    "start of 1e308 s": ("video", clip, 1e308),
    "start of 1e308 s in a sound": ("audio", partial(wav, 8000, 1, 1), 1e308),
}
