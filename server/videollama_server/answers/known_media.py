"""Media -> media tokens, kept for the next question about the same media. Knows no Triton, as entry.py."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from videollama_core.contrast import Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_cache import IsCancelled, MediaCache, media_key
from videollama_core.media.video import Segment
from videollama_core.media.video_decoders import DECODER_VARIABLE
from videollama_core.protocol.errors import StageDied, StageRestarting
from videollama_core.protocol.messages import FrameSeen

POLL_SECONDS = 0.05  # how often a request that waits looks whether its client has left; with every token, it looks too
DEATHS_ALLOWED = 3  # of the stages before it, until a request is given up
RESTART_SECONDS = 15.0  # how long a request waits for a stage that is being started again
Interval = tuple[float, float]  # Unix seconds when work began and ended
NOT_RUN: Interval = (0.0, 0.0)  # of a stage that did not work for a request
T = TypeVar("T")


@dataclass(frozen=True)
class Media:
    """As they were sent.

    Attributes:
        caller: by whom, where that is known.
    """

    kind: str
    files: Sequence[bytes]
    segment: Segment
    caller: str = ""


@dataclass(frozen=True)
class Pixels:
    """Media as the encoder takes it."""

    frames: np.ndarray  # uint8 [T, S, S, 3]
    filterbank: np.ndarray  # float32 [R, F]
    span: Interval  # of its making
    looked_at: tuple[FrameSeen, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes + self.filterbank.nbytes


@dataclass(frozen=True)
class Perception:
    table: Any  # [1, N, D], with noise [1, 2N, D]: an array, or Triton's own tensor where they lie on the GPU
    rows: int  # of the table
    media_hash: int  # of what was encoded, never 0
    spans: dict[str, Interval]  # of this request's own work, by stage
    looked_at: tuple[FrameSeen, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of a table that is an array."""
        return int(self.table.nbytes)


class MediaStages(Protocol):
    """Media are given up, with Cancelled, once `is_cancelled` says that nobody waits for them."""

    def perceive(self, media: Media, noise: Noise | None, is_cancelled: IsCancelled) -> Perception: ...

    def preprocess(self, media: Media, is_cancelled: IsCancelled) -> Pixels: ...

    def encode(self, pixels: Pixels, noise: Noise | None, is_cancelled: IsCancelled) -> Perception: ...


class KnownMedia:
    """What was made of the media that were asked about last: their tokens; their pixels where tokens stay on the GPU, and
    the encoder keeps them."""

    def __init__(self, bundle: Bundle, stages: MediaStages, cache_bytes: int) -> None:
        self._stages, self._checkpoint = stages, bundle.identity
        self._keeps_pixels = bundle.keeps_media_tokens_on_gpu
        self.cache: MediaCache[Any] = MediaCache(cache_bytes)  # of Pixels or Perceptions

    def perceive(self, media: Media, noise: Noise | None, is_cancelled: IsCancelled) -> Perception:
        """Kept, or made now; ten callers with the same new media wait for one. Raises: what a stage reports, Cancelled."""
        decoder = os.environ.get(DECODER_VARIABLE)
        # By caller, too: a process that one file of his took over may answer what it likes about his next (sandbox/decoding.py).
        options = {"segment": media.segment, "decoder": decoder, "caller": media.caller}
        if not self._keeps_pixels:
            key = media_key(self._checkpoint, media.kind, media.files, noise=noise, **options)
            make = _while_restarting(lambda left: self._stages.perceive(media, noise, left))
            found: tuple[Perception, bool] = self.cache.get(key, make, is_cancelled)
            seen, was_known = found
            return replace(seen, spans=dict.fromkeys(seen.spans, NOT_RUN)) if was_known else seen
        key = media_key(self._checkpoint, media.kind, media.files, **options)
        prepare = _while_restarting(lambda left: self._stages.preprocess(media, left))
        pixels, was_known = self.cache.get(key, prepare, is_cancelled)
        seen = _while_restarting(lambda left: self._stages.encode(pixels, noise, left))(is_cancelled)
        spans = {"preprocess": NOT_RUN if was_known else pixels.span, **seen.spans}
        return replace(seen, spans=spans, looked_at=pixels.looked_at)


def _while_restarting(ask: Callable[[IsCancelled], T]) -> Callable[[IsCancelled], T]:
    """Ask again while a stage is being started again; not for ever, for the file itself may be what kills it."""

    def asking(is_cancelled: IsCancelled) -> T:
        deadline = time.monotonic() + RESTART_SECONDS
        deaths = 0
        while True:
            try:
                return ask(is_cancelled)
            except StageRestarting as error:
                deaths += isinstance(error, StageDied)
                if deaths > DEATHS_ALLOWED or time.monotonic() > deadline or is_cancelled():
                    raise
            time.sleep(POLL_SECONDS)

    return asking
