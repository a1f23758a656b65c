"""Who may ask, and how much: a file of keys, one a line."""

import hashlib
import hmac
import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from videollama_core.protocol.errors import InvalidRequest, NotAllowed, Overloaded

logger = logging.getLogger(__name__)
_MINUTE = 60.0
_LIMITS = ("concurrent", "per_minute")


@dataclass
class Caller:
    """One who may ask. A limit of 0 is none.

    Attributes:
        mark: what the stages know it by, and nobody else; "" where they are to know nobody.
    """

    name: str = ""
    concurrent: int = 0
    per_minute: int = 0
    running: int = 0
    begun: deque[float] = field(default_factory=deque)  # of the last minute
    mark: str = ""

    def enter(self, is_ping: bool = False) -> None:
        """Begin a request; `leave` ends it. A ping counts as none. Raises: Overloaded where a limit is reached."""
        if is_ping:
            return
        now = time.monotonic()
        while self.begun and now - self.begun[0] >= _MINUTE:
            self.begun.popleft()
        if self.concurrent and self.running >= self.concurrent:
            raise Overloaded(f"{self.running} requests with this key run already, as many as may; retry in 1 s")
        if self.per_minute and len(self.begun) >= self.per_minute:
            wait = _MINUTE - (now - self.begun[0])
            raise Overloaded(f"{self.per_minute} requests a minute may come with this key; retry in {wait:.0f} s")
        self.running += 1
        if self.per_minute:
            self.begun.append(now)

    def leave(self, is_ping: bool = False) -> None:
        self.running -= not is_ping


def read_keys(path: Path, concurrent: int = 0, per_minute: int = 0) -> dict[bytes, Caller]:
    """SHA-256 of each key -> its caller. A line is `KEY [NAME] [concurrent=N] [per_minute=N]`; # begins a comment.

    Args:
        concurrent, per_minute: limits of a key whose line names none; 0 is none.
    Raises: InvalidRequest, which never says what a key is.
    """
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise InvalidRequest(f"the API keys in {path} cannot be read: {reason}") from error
    found: dict[bytes, Caller] = {}
    for number, line in enumerate(lines, 1):
        key, *words = line.partition("#")[0].split() or [""]
        if not key:
            continue
        caller = Caller(f"line {number}", concurrent, per_minute)
        for word in words:
            name, is_limit, value = word.partition("=")
            if not is_limit:
                caller.name = word
            elif name in _LIMITS and value.isdigit():
                setattr(caller, name, int(value))
            else:
                wanted = " and ".join(f"{limit}=N" for limit in _LIMITS)
                raise InvalidRequest(f"{path}, line {number}: after key and name come {wanted}, and nothing else")
        digest = hashlib.sha256(key.encode()).digest()
        if digest in found:
            raise InvalidRequest(f"{path}, line {number}: this key is on an earlier line, too")
        found[digest] = caller
    if not found:
        raise InvalidRequest(f"{path} holds no API key; write one a line")
    return found


class ApiKeys:
    """The keys of a file, read again when it changes. Without a file, everybody may ask, as one caller.

    Args:
        concurrent, per_minute: as in `read_keys`.
        marks: whether callers have marks.
    Raises: InvalidRequest where the file cannot be used.
    """

    def __init__(self, path: Path | None, concurrent: int = 0, per_minute: int = 0, marks: bool = True) -> None:
        self._path, self._defaults, self._marks = path, (concurrent, per_minute), marks
        self._anyone = Caller(mark=self._mark())
        self._callers: dict[bytes, Caller] = {}
        self._seen: tuple[int, ...] = ()
        if path is not None:
            self._seen = self._state()
            self._callers = self._read()

    def find(self, authorization: str) -> Caller:
        """The caller of a header `authorization: Bearer KEY`. Raises: NotAllowed."""
        if self._path is None:
            return self._anyone
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self._callers.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None or scheme.lower() != "bearer":
            raise NotAllowed(
                "this server wants an API key that it knows, as `authorization: Bearer KEY`; vl2 takes it from "
                "--api-key-file or VL2_API_KEY"
            )
        return found

    def reload_if_changed(self, always: bool = False) -> None:
        """The new keys; the old ones where the file cannot be used. Requests that run go on, and count on."""
        if self._path is None or (not always and self._state() == self._seen):
            return
        self._seen = self._state()
        try:
            callers = self._read()
        except InvalidRequest as error:
            logger.error("%s; the former keys stay", error)
            return
        for digest, caller in callers.items():
            known = self._callers.get(digest)
            if known is not None:
                known.name, known.concurrent, known.per_minute = caller.name, caller.concurrent, caller.per_minute
        self._callers = {digest: self._callers.get(digest, caller) for digest, caller in callers.items()}
        logger.info("%d API keys were read from %s", len(callers), self._path)

    def _read(self) -> dict[bytes, Caller]:
        assert self._path is not None
        found = read_keys(self._path, *self._defaults)
        for caller in found.values():
            caller.mark = self._mark()
        return found

    def _mark(self) -> str:
        return secrets.token_hex(8) if self._marks else ""

    def _state(self) -> tuple[int, ...]:
        assert self._path is not None
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino
