"""Media to media tokens, cached for the next question about the same media. Independent of Triton, as entry.py."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from videollama_core.contrast import Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_cache import IsCancelled, MediaCache, media_key
from videollama_core.media.video import Segment
from videollama_core.media.video_decoders import DECODER_VARIABLE
from videollama_core.protocol.errors import StageDied, StageRestarting
from videollama_core.protocol.messages import FrameSeen

RETRY_SECONDS = 0.05  # between two attempts to call a stage that is restarting
RESTART_SECONDS = 15.0  # how long a request waits for that
DEATHS_ALLOWED = 3  # deaths of its media stages that a request survives
Interval = tuple[float, float]  # begin and end of work, in Unix seconds
NOT_RUN: Interval = (0.0, 0.0)  # for a stage that did not run for a request
T = TypeVar("T")


@dataclass(frozen=True)
class Media:
    """Encoded media as they were sent.

    Attributes:
        caller: the mark of who sent them; "" if it is unknown.
    """

    kind: str
    files: Sequence[bytes]
    segment: Segment
    caller: str = ""


@dataclass(frozen=True)
class Pixels:
    """Media in the form that the encoder takes."""

    frames: np.ndarray  # uint8 [T, S, S, 3]
    filterbank: np.ndarray  # float32 [R, F]
    span: Interval  # when it was computed
    frames_seen: tuple[FrameSeen, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes + self.filterbank.nbytes


@dataclass(frozen=True)
class Perception:
    """The encoder's output for a question's media, and when it was made."""

    table: Any  # media tokens [1, N, D], with noise [1, 2N, D]: an array, or Triton's tensor if they stay on the GPU
    rows: int  # of the table
    media_hash: int  # of the encoder's input, never 0
    spans: dict[str, Interval]  # the work done for this request, by stage
    frames_seen: tuple[FrameSeen, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the table, which must be an array."""
        return int(self.table.nbytes)

    @cached_property
    def from_cache(self) -> "Perception":
        """The same for a later request, for which no stage runs."""
        return replace(self, spans=dict.fromkeys(self.spans, NOT_RUN))


class MediaStages(Protocol):
    """The calls to the media stages. They raise Cancelled once `is_cancelled` returns true."""

    def perceive(self, media: Media, noise: Noise | None, is_cancelled: IsCancelled) -> Perception: ...

    def preprocess(self, media: Media, is_cancelled: IsCancelled) -> Pixels: ...

    def encode(self, pixels: Pixels, noise: Noise | None, is_cancelled: IsCancelled) -> Perception: ...


class KnownMedia:
    """The cache of recently used media: of their tokens, or of their pixels if the tokens stay on the GPU in the encoder."""

    def __init__(self, bundle: Bundle, stages: MediaStages, cache_bytes: int) -> None:
        self._stages, self._checkpoint = stages, bundle.identity
        self._keeps_pixels, self._decoder = bundle.keeps_media_tokens_on_gpu, os.environ.get(DECODER_VARIABLE)
        self.cache: MediaCache[Any] = MediaCache(cache_bytes)  # of Pixels or Perceptions

    def find(self, media: Media) -> Perception | None:
        """The media tokens without noise, if they are cached."""
        perception: Perception | None = None if self._keeps_pixels else self.cache.peek(self._key(media, noise=None))
        return None if perception is None else perception.from_cache

    def perceive(self, media: Media, noise: Noise | None, is_cancelled: IsCancelled) -> Perception:
        """Return the media tokens, cached or computed now; concurrent requests for the same media share the computation.

        Raises: the error of a stage; Cancelled.
        """
        if not self._keeps_pixels:
            make = _while_restarting(lambda is_cancelled: self._stages.perceive(media, noise, is_cancelled))
            cached: tuple[Perception, bool] = self.cache.get(self._key(media, noise=noise), make, is_cancelled)
            perception, was_cached = cached
            return perception.from_cache if was_cached else perception
        prepare = _while_restarting(lambda is_cancelled: self._stages.preprocess(media, is_cancelled))
        pixels, was_cached = self.cache.get(self._key(media), prepare, is_cancelled)
        encode = _while_restarting(lambda is_cancelled: self._stages.encode(pixels, noise, is_cancelled))
        perception = encode(is_cancelled)
        spans = {"preprocess": NOT_RUN if was_cached else pixels.span, **perception.spans}
        return replace(perception, spans=spans, frames_seen=pixels.frames_seen)

    def _key(self, media: Media, **options: object) -> bytes:
        # By caller, too: a process taken over by one of its files may falsify the result for its next (sandbox/decoding.py).
        options |= {"segment": media.segment, "decoder": self._decoder, "caller": media.caller}
        return media_key(self._checkpoint, media.kind, media.files, **options)


def _while_restarting(call: Callable[[IsCancelled], T]) -> Callable[[IsCancelled], T]:
    """Repeat a call while its stage restarts, up to a limit, because the file itself may be what kills the stage."""

    def repeated(is_cancelled: IsCancelled) -> T:
        deadline = time.monotonic() + RESTART_SECONDS
        deaths = 0
        while True:
            try:
                return call(is_cancelled)
            except StageRestarting as error:
                deaths += isinstance(error, StageDied)
                if deaths > DEATHS_ALLOWED or time.monotonic() > deadline or is_cancelled():
                    raise
            time.sleep(RETRY_SECONDS)

    return repeated
