"""API keys and their rate limits: a file with one key per line."""

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
    """A caller and its limits; a limit of 0 means unlimited.

    Attributes:
        begun: when each request of the last minute began, in seconds of the monotonic clock.
        mark: a secret id by which the stages tell callers apart; "" if they are not to.
    """

    name: str = ""
    concurrent: int = 0
    per_minute: int = 0
    running: int = 0
    begun: deque[float] = field(default_factory=deque)
    mark: str = ""

    def enter(self, is_ping: bool = False) -> None:
        """Count the start of a request, which `leave` ends; pings are free. Raises: Overloaded at a limit."""
        if is_ping:
            return
        now = time.monotonic()
        while self.begun and now - self.begun[0] >= _MINUTE:
            self.begun.popleft()
        if self.concurrent and self.running >= self.concurrent:
            raise Overloaded(f"{self.running} requests with this key are running, which is its limit; retry in 1 s")
        if self.per_minute and len(self.begun) >= self.per_minute:
            wait = _MINUTE - (now - self.begun[0])
            raise Overloaded(f"this key is limited to {self.per_minute} requests per minute; retry in {wait:.0f} s")
        self.running += 1
        if self.per_minute:
            self.begun.append(now)

    def leave(self, is_ping: bool = False) -> None:
        """Count the end of a request."""
        self.running -= not is_ping


def read_keys(path: Path, concurrent: int = 0, per_minute: int = 0) -> dict[bytes, Caller]:
    """Return the caller of each key, by the key's SHA-256.

    A line is `KEY [NAME] [concurrent=N] [per_minute=N]`; # begins a comment.

    Args:
        concurrent, per_minute: default limits; 0 means unlimited.
    Raises: InvalidRequest, whose message never contains a key.
    """
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise InvalidRequest(f"the API keys in {path} cannot be read: {reason}") from error
    callers: dict[bytes, Caller] = {}
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
                raise InvalidRequest(f"{path}, line {number}: after key and name, only {wanted} may follow")
        digest = hashlib.sha256(key.encode()).digest()
        if digest in callers:
            raise InvalidRequest(f"{path}, line {number}: this key is also on an earlier line; remove one of them")
        callers[digest] = caller
    if not callers:
        raise InvalidRequest(f"{path} holds no API keys; write one per line")
    return callers


class ApiKeys:
    """The API keys of a file, reread when it changes. Without a file, everyone is admitted, as one caller.

    Args:
        concurrent, per_minute: as in `read_keys`.
        marks: whether callers get marks.
    Raises: InvalidRequest if the file cannot be read or is invalid.
    """

    def __init__(self, path: Path | None, concurrent: int = 0, per_minute: int = 0, marks: bool = True) -> None:
        self._path, self._defaults, self._marks = path, (concurrent, per_minute), marks
        self._anyone = Caller(mark=self._mark())
        self._callers: dict[bytes, Caller] = {}
        self._file_state: tuple[int, ...] = ()
        if path is not None:
            self._file_state = self._state()
            self._callers = self._read()

    def find(self, authorization: str) -> Caller:
        """Return the caller for the value of an authorization header, `Bearer KEY`. Raises: NotAllowed."""
        if self._path is None:
            return self._anyone
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        match = None
        for key_digest, caller in self._callers.items():  # all of them: the time must not reveal anything
            if hmac.compare_digest(key_digest, digest):
                match = caller
        if match is None or scheme.lower() != "bearer":
            raise NotAllowed(
                "the API key is missing or unknown to this server; send `authorization: Bearer KEY` (vl2 reads the key from "
                "--api-key-file or VL2_API_KEY)"
            )
        return match

    def reload_if_changed(self, always: bool = False) -> None:
        """Load the new keys, or keep the old ones if the file is invalid. Running requests continue and still count."""
        if self._path is None or (not always and self._state() == self._file_state):
            return
        self._file_state = self._state()
        try:
            callers = self._read()
        except InvalidRequest as error:
            logger.error("%s; keeping the previous keys", error)
            return
        for digest, caller in callers.items():
            current = self._callers.get(digest)
            if current is not None:
                current.name, current.concurrent, current.per_minute = caller.name, caller.concurrent, caller.per_minute
        self._callers = {digest: self._callers.get(digest, caller) for digest, caller in callers.items()}
        logger.info("read %d API keys from %s", len(callers), self._path)

    def _read(self) -> dict[bytes, Caller]:
        assert self._path is not None
        callers = read_keys(self._path, *self._defaults)
        for caller in callers.values():
            caller.mark = self._mark()
        return callers

    def _mark(self) -> str:
        return secrets.token_hex(8) if self._marks else ""

    def _state(self) -> tuple[int, ...]:
        assert self._path is not None
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino
