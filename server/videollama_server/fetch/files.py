"""Files named by file:// URLs, below the one folder that the operator allows."""

import os
import re
import stat
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from videollama_core.protocol.errors import InvalidRequest, MediaUnreachable
from videollama_core.protocol.limits import MEDIA_BYTES
from videollama_server.fetch.addresses import check_characters

_URL = re.compile(r"file://(/[^?#]*)", re.IGNORECASE)
_OUTSIDE = "media_url does not name a file below the folder that this server allows; send the media itself"


def is_file_url(url: str) -> bool:
    return url[:5].lower() == "file:"


def path_below(root: str, url: str) -> str:
    """Return the path in a file:// URL, unresolved. Raises: InvalidRequest unless it lies below the folder."""
    check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise InvalidRequest("media_url is not file:///PATH; wanted an absolute path and no host")
    try:
        path = unquote_to_bytes(match[1]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the path of media_url is not UTF-8") from error
    inside = path.startswith(root.rstrip("/") + "/")
    if not path.isprintable() or not inside or any(part in ("", ".", "..") for part in path[1:].split("/")):
        raise InvalidRequest(_OUTSIDE)
    return path


def read_below(root: str, path: str) -> bytes:
    """Read a regular file that lies below the folder once all symbolic links are resolved.

    Raises: InvalidRequest if it does not, or is too large; MediaUnreachable if it cannot be read.
    """
    real_root, real = os.path.realpath(root), os.path.realpath(path)
    if not real.startswith(real_root.rstrip("/") + "/"):
        raise InvalidRequest(_OUTSIDE)
    try:
        with open(_open_below(real_root, os.path.relpath(real, real_root).split("/")), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            MEDIA_BYTES.check(size, "the media at media_url")
            return file.read(size)
    except OSError as error:
        raise MediaUnreachable(f"media_url cannot be read: {error.strerror}") from error


def _open_below(folder: str, parts: Sequence[str]) -> int:
    """Open component by component without following links, so that a link made since the path was resolved is refused.

    Raises: OSError; InvalidRequest unless it is a regular file.
    """
    parent = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            child = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            os.close(parent)
            parent = child
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
            raise InvalidRequest(_OUTSIDE)
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidRequest(_OUTSIDE)
    return file
