"""Parse the content parts of a message into text and media. Unsupported options are refused, not ignored."""

import base64
import binascii
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videollama_gateway.failures import BadRequest

# Part type -> (key of its media, kind); input_image and input_text belong to the Responses API.
_MEDIA_PARTS = {
    "image_url": ("image_url", "image"),
    "input_image": ("image_url", "image"),
    "video_url": ("video_url", "video"),
    "audio_url": ("audio_url", "audio"),
    "input_audio": ("input_audio", "audio"),
    "file": ("file", None),
    "input_file": ("file", None),
}
_TEXT_PARTS = ("text", "input_text", "output_text")
TIMES = ("start", "end", "with_audio", "num_frames", "sampling")  # extra fields that a question takes
_FRAME_COUNTS = ("fps", "max_frames")  # extra fields that are refused with advice
_HARMLESS = ("type", "url", "detail", "uuid", "format", "data", "file_data", "filename", "mime_type")
_BASE64, _HEAD_CHARACTERS = ";base64,", 1000  # of a data: URL
# Offset, magic bytes -> kind of the file.
_MAGIC = (
    (0, b"\x89PNG", "image"),
    (0, b"\xff\xd8\xff", "image"),
    (0, b"BM", "image"),
    (0, b"II*\0", "image"),
    (0, b"MM\0*", "image"),
    (8, b"WEBP", "image"),
    (8, b"WAVE", "audio"),
    (8, b"AVI ", "video"),
    (0, b"fLaC", "audio"),
    (0, b"OggS", "audio"),
    (0, b"ID3", "audio"),
    *((0, bytes((0xFF, second)), "audio") for second in (0xF1, 0xF2, 0xF3, 0xF9, 0xFA, 0xFB)),  # AAC, mp3
    (8, b"AIF", "audio"),
    (0, b"#!AMR", "audio"),
    (0, b"FLV\1", "video"),
    (0, b"\0\0\1\xba", "video"),
    (0, b"GIF8", "video"),
    (4, b"ftypavif", "image"),
    (4, b"ftypM4A", "audio"),
    (4, b"ftyp", "video"),
    (0, b"\x1a\x45\xdf\xa3", "video"),
)


@dataclass
class MediaParts:
    """The media of a conversation, collected while its messages are read.

    Attributes:
        media: in order, (kind, bytes) of media that was sent, (kind, URL) of media for the server to fetch.
        extras: start, end, with_audio, num_frames and sampling, from any level of the request.
    """

    media: list[tuple[str, bytes | str]] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)

    def add_extras(self, values: Any, where: str) -> None:
        """Collect the extra fields among `values`. Raises: BadRequest for unsupported or contradictory ones."""
        if values is None:
            return
        if not isinstance(values, Mapping):
            raise BadRequest(f"{where} is not an object", where)
        for name in _FRAME_COUNTS:
            if values.get(name) is not None:
                raise BadRequest(
                    f"{where}: {name} is not supported; set the number of frames (num_frames), or leave it out for the "
                    "number that the checkpoint was trained on",
                    name,
                )
        for name in TIMES:
            if (value := values.get(name)) is not None and self.extras.setdefault(name, value) != value:
                raise BadRequest(f"{name} is both {self.extras[name]!r} and {value!r}; send it once", name)


def read_content(content: Any, where: str, media_parts: MediaParts) -> str:
    """Return the text of a message's content and add its media to `media_parts`. Raises: BadRequest."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} is neither a string nor a list of parts", where)
    texts = []
    for index, part in enumerate(content):
        name = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise BadRequest(f"{name}.text is not a string", name)
            texts.append(part["text"])
        elif isinstance(kind, str) and kind in _MEDIA_PARTS:
            _read_media(part, *_MEDIA_PARTS[kind], name, media_parts)
        else:
            types = ", ".join((*_TEXT_PARTS[:2], *_MEDIA_PARTS))
            raise BadRequest(f"{name} has type {kind!r}; wanted one of {types}", name)
    return "\n".join(texts)


def _read_media(part: Mapping[str, Any], key: str, kind: str | None, where: str, media_parts: MediaParts) -> None:
    value = part.get(key, part)
    inner: Mapping[str, Any] = value if isinstance(value, Mapping) else {"url": value}
    source = next((inner[name] for name in ("url", "data", "file_data") if inner.get(name) is not None), None)
    if not isinstance(source, str):
        raise BadRequest(f"{where} holds no media; wanted a URL or base64 in {key}", where)
    for fields in (part, inner):
        unknown = set(fields) - {*TIMES, *_FRAME_COUNTS, *_HARMLESS, key}
        if unknown:
            raise BadRequest(f"{where} has the unknown field {sorted(unknown)[0]!r}; leave it out", where)
        media_parts.add_extras(fields, where)
    mime, content = read_source(source, where)
    mime_kind = mime.partition("/")[0]
    if isinstance(content, str):  # a URL: only its suffix can tell the kind
        kind = kind or _kind_of_url(content, where)
    elif kind is None:
        kind = mime_kind if mime_kind in ("image", "video", "audio") else _kind_of_bytes(content)
    elif mime_kind == "video" and kind == "image":
        kind = "video"
    if kind is None:
        raise BadRequest(
            f"{where} is not recognized as a picture, a video or an audio file; send it in a part of its kind", where
        )
    media_parts.media.append((kind, content))


def read_source(source: str, where: str) -> tuple[str, bytes | str]:
    """Return (MIME type or "", content): the bytes of a data: URL or of plain base64, or the URL itself.

    Raises: BadRequest for another scheme or invalid base64.
    """
    scheme, separator, rest = source.partition(":")
    if scheme.lower() in ("http", "https", "file") and separator:
        return "", source
    if scheme.lower() == "data" and separator:
        end = rest[:_HEAD_CHARACTERS].lower().find(_BASE64)  # a comma alone may belong to a parameter: codecs=vp8,opus
        if end < 0:
            raise BadRequest(f"{where}: the data: URL is malformed; wanted data:TYPE;base64,DATA", where)
        return rest[:end].partition(";")[0].strip().lower(), _decode(rest[end + len(_BASE64) :], where)
    if separator:
        raise BadRequest(
            f"{where}: the scheme {scheme[:20]!r} is not supported; wanted data, https, http or file", where
        )
    return "", _decode(source, where)


def _decode(text: str, where: str) -> bytes:
    if "\n" in text:  # as MIME and the command base64 break lines
        text = "".join(text.split())
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{where} is not valid base64: {error}", where) from error
    if not content:
        raise BadRequest(f"{where} is empty", where)
    return content


def _kind_of_bytes(content: bytes) -> str | None:
    if content[:1] == content[188:189] == b"G":
        return "video"  # MPEG-TS: packets of 188 bytes, each beginning so
    return next((kind for at, magic, kind in _MAGIC if content[at : at + len(magic)] == magic), None)


def _kind_of_url(url: str, where: str) -> str | None:
    try:
        path = urllib.parse.urlsplit(url).path
    except ValueError as error:
        raise BadRequest(f"{where}: the URL cannot be read: {error}", where) from error
    suffix = path.rpartition(".")[2].lower()
    kinds = {
        "video": ("mp4", "mov", "mkv", "webm", "avi", "gif", "m4v"),
        "image": ("png", "jpg", "jpeg", "webp", "bmp", "avif", "tif", "tiff"),
        "audio": ("wav", "flac", "mp3", "ogg", "opus", "m4a"),
    }
    return next((kind for kind, names in kinds.items() if suffix in names), None)
