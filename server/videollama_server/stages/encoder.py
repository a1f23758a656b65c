"""Pixels and filterbanks -> media tokens: vision encoder, connector, audio encoder; by turns where several requests wait.

A request with a caller's note gets one run of the tower (media_encoder.py) and, unless that was the last, an answer without
rows; its caller asks again, behind those who asked meanwhile. So Triton's queue is the order of the turns, and as every run is
within a call, Triton sees a process that dies at work.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from videollama_core.contrast import Noise
from videollama_core.engines.media_encoder import Encoding, MediaEncoder, media_hash
from videollama_core.protocol.contract import ENCODER
from videollama_core.protocol.errors import Cancelled, InvalidRequest, StageDied
from videollama_server.sandbox.callers import is_waiting
from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar

FEATURE_BYTES = 512 * 2**20  # of requests that are begun and not done: 27 videos of CLIP-L/336, 4 of 32 SigLIP frames


@dataclass
class _Work:
    """A request under way."""

    encoding: Encoding
    preprocess_span: tuple[float, float]
    began: float = field(default_factory=time.time)


class EncoderStage(PythonStage):
    contract = ENCODER

    def load(self, args: dict[str, str]) -> None:
        bundle = bundle_of(args)
        self.encoder = MediaEncoder(bundle)
        self._no_rows = np.zeros((1, 0, 1), np.float16 if bundle.language_engine.is_backend else np.float32)
        self._under_way: dict[str, _Work] = {}  # by the caller's note, in order of arrival

    def run(
        self,
        frames: Any,
        filterbank: Any,
        preprocess_span: Any,
        vcd_noise_step: Any,
        seed: Any,
        caller: Any,
    ) -> dict[str, Any]:
        note = scalar(caller, "caller")
        self._drop_those_who_left()
        if frames is None:
            return self._go_on(note)
        step = scalar(vcd_noise_step, "vcd_noise_step")
        noise = None if step is None else Noise(step, scalar(seed, "seed") or 0)
        span = (0.0, 0.0) if preprocess_span is None else (float(preprocess_span[0]), float(preprocess_span[1]))
        work = _Work(self.encoder.begin(frames, filterbank, noise), span)
        while not (work.encoding.is_done or note):
            self._take_turn(work)
        if note:
            self._under_way[note] = work
            self._take_turn(work)
        if not work.encoding.is_done:
            work.encoding.keep()  # the request's memory goes back
        elif note:
            del self._under_way[note]
        return self._told(work)

    def _go_on(self, note: str | None) -> dict[str, Any]:
        """Raises: Cancelled where its caller has left, StageDied where this process never saw its frames."""
        if note is None:
            raise InvalidRequest("tensor frames is missing; without a caller's note it holds what is to be encoded")
        if not is_waiting(note):
            raise Cancelled("the client left")
        work = self._under_way.get(note)
        if work is None:
            raise StageDied("stage encoder: its process died while it worked on the request")
        self._take_turn(work)
        if work.encoding.is_done:
            del self._under_way[note]
        return self._told(work)

    def _take_turn(self, work: _Work) -> None:
        """One run for this request. Where its features have no room yet it goes to who must come first, and work goes on."""
        if work.encoding.is_done:
            return
        under_way = [other.encoding for other in self._under_way.values() if not other.encoding.is_done]
        begun = [encoding for encoding in under_way if encoding.has_begun]
        first = work.encoding
        if not first.has_begun:
            first = next((encoding for encoding in under_way if not encoding.has_begun), first)
            held = sum(map(self.encoder.feature_bytes, begun))
            if begun and held + self.encoder.feature_bytes(first) > FEATURE_BYTES:
                first = begun[0]
        self.encoder.run(first, [encoding for encoding in begun if encoding is not first])

    def _drop_those_who_left(self) -> None:
        for note in [note for note in self._under_way if not is_waiting(note)]:
            del self._under_way[note]

    def _told(self, work: _Work) -> dict[str, Any]:
        """The table, or that there is none yet."""
        table = work.encoding.table
        return {
            "prompt_embedding_table": self._no_rows if table is None else table[None],
            "prompt_vocab_size": [[0 if table is None else len(table)]],
            "media_hash": [[media_hash(work.encoding.digest)]],
            "perception_spans": [*work.preprocess_span, work.began, time.time()],
        }
