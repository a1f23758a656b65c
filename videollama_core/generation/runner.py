"""The interface that runs one step of the language model on numbered slots. Runners are listed in language_models.py."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from videollama_core.sampling import Sampler


class Scores(Protocol):
    """Scores of B rows, left on the device where they were computed until a row is read."""

    def __getitem__(self, row: int) -> np.ndarray:
        """float32 [vocab]"""
        ...

    def best(self, samplers: Sequence[Sampler]) -> list[int | None]:
        """The best token of each row after its request's penalty; None where the host should choose."""
        ...


class HostScores:
    """Scores on the host: choosing there needs no copy, so `best` leaves all choices to it."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits  # float32 [B, vocab]

    def __getitem__(self, row: int) -> np.ndarray:
        return self._logits[row]

    def best(self, samplers: Sequence[Sampler]) -> list[int | None]:
        return [None] * len(samplers)


class Runner(Protocol):
    """Decoder steps on numbered slots, each holding one request's KV cache."""

    num_slots: int
    max_length: int  # positions per slot
    vocab_size: int
    spare_bytes: int  # memory available for what `keep` returns

    def prefill(self, slot: int, ids: np.ndarray, media: np.ndarray | None, visible: np.ndarray) -> np.ndarray:
        """Append prompt positions to a slot.

        Args:
            ids: int64 [S]; vocab_size + k is row k of `media`.
            media: float32 [N, D].
            visible: bool [S]; False at positions to which later ones must not attend.
        Returns: scores after the last position, float32 [vocab].
        """
        ...

    def decode(self, slots: list[int], tokens: list[int]) -> Scores:
        """Append one token to each of several slots, in one step. Returns: scores of the next tokens, a row per slot."""
        ...

    def keep(self, slot: int) -> Any:
        """A copy of a slot's content, for `begin`; it has `nbytes`."""
        ...

    def begin(self, slot: int, kept: Any, length: int) -> None:
        """Fill a free slot with the first `length` positions of what `keep` returned."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's content."""
        ...
