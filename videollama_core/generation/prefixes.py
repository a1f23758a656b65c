"""The prefix cache: KV cache contents of earlier prompts, reused by prompts with the same prefix.

A second question about the same media is the usual case.
A position is identified by its id and, for media rows, by the hash of the media: the ids of media rows are the same for
every video.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PREFIX_VARIABLE = "VL2_PREFIX_CACHE_BYTES"  # environment variable of the language model's stage; 0 disables the cache
SPARE_BYTES = 2**30  # four prompts of 900 positions of a 7B model in float32
SHORTEST = 32  # positions: fewer are computed about as fast as they are looked up
MOST_KEPT = 32  # prompts; a new prompt is compared with each
ALIKE = 0.9  # share of a cached prompt: a new prompt that begins with this much of it replaces it

_SECRET = secrets.token_bytes(32)  # of this process: without it nobody can search for colliding media


def spare_memory(free_bytes: int) -> int:
    """Bytes for cached prompts: the operator's setting, else 1 GiB or a quarter of the free memory."""
    return int(os.environ.get(PREFIX_VARIABLE) or min(SPARE_BYTES, free_bytes // 4))


def positions_of(
    ids: np.ndarray, vocab_size: int, hashes: np.ndarray | None, media: np.ndarray | None, pad_id: int | None
) -> np.ndarray:
    """The identity of each position of a prompt, for comparing prompts: int64 [L, 2].

    Args:
        ids: int64 [L]; vocab_size + k is row k of `media`.
        hashes: uint64 [L], the media's hash at media positions; where it is 0 or missing, `media` is hashed here.
        media: float32 [N, D].
        pad_id: positions with this id are not attended to.
    """
    positions = np.zeros((len(ids), 2), np.int64)
    positions[:, 0] = ids if pad_id is None else np.where(ids == pad_id, -1, ids)
    is_media = ids >= vocab_size
    if hashes is not None:
        positions[is_media, 1] = hashes[is_media].view(np.int64)
    unnamed = is_media & (positions[:, 1] == 0)
    if unnamed.any():
        digest = hashlib.blake2b(np.ascontiguousarray(media).data, digest_size=8, key=_SECRET).digest()
        positions[unnamed, 1] = int.from_bytes(digest, "little", signed=True)
    return positions


@dataclass(frozen=True)
class _Kept:
    positions: np.ndarray  # int64 [L, 2]
    values: Any  # returned by a runner's `keep`


class KeptPrefixes:
    """An LRU cache of prompts, bounded in bytes. For one thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self.bytes = most_bytes, 0
        self._kept: list[_Kept] = []  # most recently used last

    def find(self, positions: np.ndarray) -> tuple[Any, int]:
        """The values with the longest common prefix, and its length; (None, 0) if it is too short.

        The last position is always computed: its scores are needed, and scores are not cached.
        """
        lengths = [_common_length(kept.positions, positions[:-1]) for kept in self._kept]
        longest = max(lengths, default=0)
        if longest < SHORTEST:
            return None, 0
        match = self._kept.pop(lengths.index(longest))
        self._kept.append(match)
        return match.values, longest

    def keep(self, positions: np.ndarray, read: Callable[[], Any]) -> None:
        """Cache the values of a prompt, unless it is short, its positions are all cached already, or it is too large."""
        if len(positions) < SHORTEST or self._most_bytes <= 0:
            return
        common = [_common_length(kept.positions, positions) for kept in self._kept]
        if max(common, default=0) >= len(positions) - 1:
            return
        values = read()
        if values.nbytes > self._most_bytes:
            return
        alike = zip(self._kept, common, strict=True)
        self._drop([kept for kept, length in alike if length >= ALIKE * len(kept.positions)])
        self._kept.append(_Kept(positions, values))
        self.bytes += values.nbytes
        while self.bytes > self._most_bytes or len(self._kept) > MOST_KEPT:
            self._drop(self._kept[:1])

    def _drop(self, dropped: Sequence[_Kept]) -> None:
        for kept in dropped:
            self.bytes -= kept.values.nbytes
        self._kept = [kept for kept in self._kept if not any(kept is other for other in dropped)]


def _common_length(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common prefix of two arrays of positions."""
    length = min(len(left), len(right))
    differs = (left[:length] != right[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length
