"""What was made of media, kept for the next question about them: found by a digest of all that it depends on, compared in full."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from videollama_core.protocol.errors import Cancelled, InvalidRequest

CACHE_VARIABLE = "VL2_MEDIA_CACHE_BYTES"  # of a stage's environment: memory for what is kept
KEPT_BYTES = 256 * 2**20  # about 25 videos of a 7B checkpoint
ENTRY_BYTES = 1024  # counted for each entry beside its value, so that small ones are bounded too
WAIT_SECONDS = 0.05  # how often a caller that waits for another's work looks whether its client has left


class Kept(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Kept)
IsCancelled = Callable[[], bool]


def media_key(checkpoint: bytes, kind: str, files: Sequence[bytes], **options: object) -> bytes:
    """SHA-256 of media and of everything that decides what is made of them.

    Each part comes after its length, and each list after its count: no two requests read as the same bytes.

    Args:
        checkpoint: its identity (`Bundle.identity`).
        options: by name; values whose repr tells them apart (numbers, text, None, dataclasses of these).
    """
    digest = hashlib.sha256()

    def add(*parts: bytes) -> None:
        digest.update(len(parts).to_bytes(8, "little"))
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)  # lets other threads run meanwhile

    add(checkpoint, kind.encode())
    add(*(word.encode() for name in sorted(options) for word in (name, repr(options[name]))))
    add(*files)
    return digest.digest()


class _Flight(Generic[T]):
    """Work under way for all who asked for it meanwhile."""

    def __init__(self, is_cancelled: IsCancelled) -> None:
        self._is_cancelled, self.waiting = is_cancelled, 0
        self.ended = threading.Event()
        self.value: T | None = None
        self.refusal: InvalidRequest | None = None

    def is_abandoned(self) -> bool:
        """Whether everybody who wanted it has left."""
        return self.waiting == 0 and self._is_cancelled()


class MediaCache(Generic[T]):
    """The values that were asked for last, by key, up to a size in bytes; what is missing is made once for all who wait.

    `hits` counts callers for whom nothing was made, `misses` the others.
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
        """The value, if it is kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
            return found

    def keep(self, key: bytes, value: T) -> T:
        """For the next one who asks; one that was kept meanwhile is as good, and is returned."""
        with self._lock:
            if key not in self._kept:
                self._keep(key, value)
            return self._kept.get(key, value)

    def get(
        self, key: bytes, make: Callable[[IsCancelled], T], is_cancelled: IsCancelled = lambda: False
    ) -> tuple[T, bool]:
        """The value, and whether it was there, or made for another caller.

        Args:
            make: called without a lock, with a function that says when nobody wants its value any more.
        Raises: what `make` raises. A refusal (InvalidRequest) is told to all who waited, for it is about the media; after
            any other failure the next of them tries it himself. Cancelled when this caller has left.
        """
        while True:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    self.hits += 1
                    return self._kept[key], True
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = _Flight[T](is_cancelled)
                    self.misses += 1
                    break
                flight.waiting += 1
            try:
                while not flight.ended.wait(WAIT_SECONDS):
                    if is_cancelled():
                        raise Cancelled("the client left")
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
            mine.refusal = type(error)(str(error))  # the error itself would hold its frames, and the media in them
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
