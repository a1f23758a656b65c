"""Results computed from media, cached for the next question about them under a digest of everything that they depend on."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from videollama_core.protocol.errors import Cancelled, InvalidRequest

CACHE_VARIABLE = "VL2_MEDIA_CACHE_BYTES"  # environment variable of a stage: memory for its cache
KEPT_BYTES = 256 * 2**20  # about 25 videos of a 7B checkpoint
ENTRY_BYTES = 1024  # counted for each entry besides its value, so that small entries are bounded too
WAIT_SECONDS = 0.05  # between two checks of a waiting caller whether its client has disconnected


class Kept(Protocol):
    """A cached value; its size counts against the limit."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Kept)
IsCancelled = Callable[[], bool]


def media_key(checkpoint: bytes, kind: str, files: Sequence[bytes], **options: object) -> bytes:
    """SHA-256 of media and of everything else that their result depends on.

    Each part is preceded by its length, and each list by its count, so that no two requests give the same bytes.

    Args:
        checkpoint: its identity (`Bundle.identity`).
        kind: one of contract.MEDIA_KINDS.
        options: by name; values with a distinctive repr (numbers, text, None, tuples and dataclasses of these).
    """
    digest = hashlib.sha256()

    def add(*parts: bytes) -> None:
        digest.update(len(parts).to_bytes(8, "little"))
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)  # releases the GIL

    add(checkpoint, kind.encode())
    add(repr(sorted(options.items())).encode())
    add(*files)
    return digest.digest()


class _Flight(Generic[T]):
    """A computation in progress, shared by all callers that need it meanwhile."""

    def __init__(self, is_cancelled: IsCancelled) -> None:
        self._is_cancelled, self.waiting = is_cancelled, 0
        self.ended = threading.Event()
        self.value: T | None = None
        self.refusal: InvalidRequest | None = None

    def is_abandoned(self) -> bool:
        """Whether every caller that needed it has left."""
        return self.waiting == 0 and self._is_cancelled()


class MediaCache(Generic[T]):
    """An LRU cache by key, bounded in bytes; a missing value is computed once for all callers that wait for it.

    `hits` counts callers for whom nothing was computed, `misses` the others. Thread-safe.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes, self.bytes = most_bytes, 0
        self.hits = self.misses = self.evictions = 0
        self._kept: OrderedDict[bytes, T] = OrderedDict()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def known(self, key: bytes) -> T | None:
        """The value if it is cached, else None."""
        with self._lock:
            value = self._find(key)
            self.misses += value is None
            return value

    def peek(self, key: bytes) -> T | None:
        """As `known`, but None does not count as a miss: the caller goes on to `get`."""
        with self._lock:
            return self._find(key)

    def _find(self, key: bytes) -> T | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
            self.hits += 1
        return value

    def keep(self, key: bytes, value: T) -> T:
        """Cache a value for later callers; returns an equal one instead if one was cached meanwhile."""
        with self._lock:
            if key not in self._kept:
                self._keep(key, value)
            return self._kept.get(key, value)

    def get(
        self, key: bytes, make: Callable[[IsCancelled], T], is_cancelled: IsCancelled = lambda: False
    ) -> tuple[T, bool]:
        """The value, and whether it was cached or computed for another caller.

        Args:
            make: called without a lock, with a function that returns whether nobody needs the value any more.
            is_cancelled: whether this caller has left.
        Raises: what `make` raises. InvalidRequest is raised to all waiting callers, because it is about the media; after
            any other error the next of them tries again. Cancelled if this caller has left.
        """
        while True:
            with self._lock:
                value = self._find(key)
                if value is not None:
                    return value, True
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = _Flight[T](is_cancelled)
                    self.misses += 1
                    break
                flight.waiting += 1
            try:
                while not flight.ended.wait(WAIT_SECONDS):
                    if is_cancelled():
                        raise Cancelled("the client disconnected")
            finally:
                with self._lock:
                    flight.waiting -= 1
            if flight.refusal is not None:
                raise type(flight.refusal)(str(flight.refusal))
            if flight.value is not None:
                with self._lock:
                    self.hits += 1
                return flight.value, True
        try:
            mine.value = make(mine.is_abandoned)
            return mine.value, False
        except InvalidRequest as error:
            mine.refusal = type(error)(str(error))  # the error itself would keep its stack frames and their media alive
            raise
        finally:
            with self._lock:
                del self._flights[key]
                if mine.value is not None:
                    self._keep(key, mine.value)
            mine.ended.set()

    def _keep(self, key: bytes, value: T) -> None:
        size = _size(value)
        if size > self._most_bytes:
            return
        self._kept[key] = value
        self.bytes += size
        while self.bytes > self._most_bytes:
            self.bytes -= _size(self._kept.popitem(last=False)[1])
            self.evictions += 1


def _size(value: Kept) -> int:
    return int(value.nbytes) + ENTRY_BYTES
