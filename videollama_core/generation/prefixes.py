"""Keys and values of prompts, kept for the next prompt that begins alike: a second question about the same media.

A position is known by its id and, where it is a row of media, by the hash of those media; that of a media row alone would be
the same for every video.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PREFIX_VARIABLE = "VL2_PREFIX_CACHE_BYTES"  # of the language model's environment; 0 keeps nothing
SPARE_BYTES = 2**30  # four prompts of 900 positions of a 7B model in float32
SHORTEST = 32  # positions: fewer are computed about as fast as they are looked up
MOST_KEPT = 32  # prompts, each of which a new one is compared with
ALIKE = 0.9  # of a kept prompt: a new one that begins with so much of it takes its place

_SECRET = secrets.token_bytes(32)  # of this process: outside of it nobody can look for media whose hashes meet


def spare_memory(free_bytes: int) -> int:
    """Bytes for kept prompts: what the operator says, else 1 GiB or a quarter of what is free."""
    return int(os.environ.get(PREFIX_VARIABLE) or min(SPARE_BYTES, free_bytes // 4))


def positions_of(
    ids: np.ndarray, vocab_size: int, hashes: np.ndarray | None, media: np.ndarray | None, pad_id: int | None
) -> np.ndarray:
    """What tells the positions of a prompt apart: int64 [L, 2].

    Args:
        ids: int64 [L]; vocab_size + k is row k of `media`.
        hashes: uint64 [L], of the media at their positions; where they are 0, or none came, `media` is hashed here.
        media: float32 [N, D].
        pad_id: positions with this id are not attended to.
    """
    found = np.zeros((len(ids), 2), np.int64)
    found[:, 0] = ids if pad_id is None else np.where(ids == pad_id, -1, ids)
    is_media = ids >= vocab_size
    if hashes is not None:
        found[is_media, 1] = hashes[is_media].view(np.int64)
    unnamed = is_media & (found[:, 1] == 0)
    if unnamed.any():
        digest = hashlib.blake2b(np.ascontiguousarray(media).data, digest_size=8, key=_SECRET).digest()
        found[unnamed, 1] = int.from_bytes(digest, "little", signed=True)
    return found


@dataclass(frozen=True)
class _Kept:
    positions: np.ndarray  # int64 [L, 2]
    values: Any  # of a runner's `keep`


class KeptPrefixes:
    """The prompts that were asked last, up to a size in bytes. For one thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self.bytes = most_bytes, 0
        self._kept: list[_Kept] = []  # the one used last stands last

    def find(self, positions: np.ndarray) -> tuple[Any, int]:
        """Of what is kept: that which begins with the most of these positions, and how many; (None, 0) for too few.

        The last position is never among them: its scores are wanted, and they are not kept.
        """
        lengths = [_common(one.positions, positions[:-1]) for one in self._kept]
        longest = max(lengths, default=0)
        if longest < SHORTEST:
            return None, 0
        found = self._kept.pop(lengths.index(longest))
        self._kept.append(found)
        return found.values, longest

    def keep(self, positions: np.ndarray, read: Callable[[], Any]) -> None:
        """Keep the values of a prompt, unless there are few of them, all are there, or they have no room."""
        if len(positions) < SHORTEST or self._most_bytes <= 0:
            return
        common = [_common(one.positions, positions) for one in self._kept]
        if max(common, default=0) >= len(positions) - 1:
            return
        values = read()
        if values.nbytes > self._most_bytes:
            return
        alike = zip(self._kept, common, strict=True)
        self._drop([one for one, length in alike if length >= ALIKE * len(one.positions)])
        self._kept.append(_Kept(positions, values))
        self.bytes += values.nbytes
        while self.bytes > self._most_bytes or len(self._kept) > MOST_KEPT:
            self._drop(self._kept[:1])

    def _drop(self, gone: Sequence[_Kept]) -> None:
        for one in gone:
            self.bytes -= one.values.nbytes
        self._kept = [one for one in self._kept if not any(one is other for other in gone)]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many positions both begin with."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length
