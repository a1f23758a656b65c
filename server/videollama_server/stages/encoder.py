"""Pixels and filterbanks to media tokens: vision encoder, connector, audio encoder. Waiting requests take turns.

A request with the note of a waiting caller (sandbox/callers.py) gets one run of the tower (media_encoder.py) and, unless that
was its last, an answer without rows; the entry then calls again, queued behind the calls that arrived in the meantime. Triton's queue thus determines the
order, and as every run is inside a call, Triton notices if the process dies during one.
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

FEATURE_BYTES = 512 * 2**20  # for features of unfinished requests: 27 videos of CLIP-L/336, 4 of 32 SigLIP frames


@dataclass
class _Work:
    """An unfinished request."""

    encoding: Encoding
    preprocess_span: tuple[float, float]
    began: float = field(default_factory=time.time)


class EncoderStage(PythonStage):
    """The stage `encoder`: frames uint8 [T, S, S, 3] and a filterbank float32 [R, F] to media tokens [1, N, D]."""

    contract = ENCODER

    def load(self, args: dict[str, str]) -> None:
        bundle = bundle_of(args)
        self.encoder = MediaEncoder(bundle)
        self._no_rows = np.zeros((1, 0, 1), np.float16 if bundle.language_engine.is_backend else np.float32)
        self._active: dict[str, _Work] = {}  # by the caller's note, in order of arrival

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
        self._drop_disconnected()
        if frames is None:
            return self._resume(note)
        step = scalar(vcd_noise_step, "vcd_noise_step")
        noise = None if step is None else Noise(step, scalar(seed, "seed") or 0)
        span = (0.0, 0.0) if preprocess_span is None else (float(preprocess_span[0]), float(preprocess_span[1]))
        work = _Work(self.encoder.begin(frames, filterbank, noise), span)
        while not (work.encoding.is_done or note):
            self._take_turn(work)
        if note:
            self._active[note] = work
            self._take_turn(work)
        if not work.encoding.is_done:
            work.encoding.keep()  # because the request's memory is freed
        elif note:
            del self._active[note]
        return self._outputs(work)

    def _resume(self, note: str | None) -> dict[str, Any]:
        """Continue a request. Raises: Cancelled if its caller has disconnected; StageDied if it is not in this process."""
        if note is None:
            raise InvalidRequest("tensor frames is missing; send it, or the caller of a request in progress")
        if not is_waiting(note):
            raise Cancelled("the client disconnected")
        work = self._active.get(note)
        if work is None:
            raise StageDied("stage encoder: its process died while it worked on the request")
        self._take_turn(work)
        if work.encoding.is_done:
            del self._active[note]
        return self._outputs(work)

    def _take_turn(self, work: _Work) -> None:
        """Run the tower once for this request, or, if its features do not fit yet, for the one that must finish first."""
        if work.encoding.is_done:
            return
        unfinished = [other.encoding for other in self._active.values() if not other.encoding.is_done]
        begun = [encoding for encoding in unfinished if encoding.has_begun]
        first = work.encoding
        if not first.has_begun:
            first = next((encoding for encoding in unfinished if not encoding.has_begun), first)
            held = sum(map(self.encoder.feature_bytes, begun))
            if begun and held + self.encoder.feature_bytes(first) > FEATURE_BYTES:
                first = begun[0]
        self.encoder.run(first, [encoding for encoding in begun if encoding is not first])

    def _drop_disconnected(self) -> None:
        for note in [note for note in self._active if not is_waiting(note)]:
            del self._active[note]

    def _outputs(self, work: _Work) -> dict[str, Any]:
        """The media tokens, or a table without rows if they are not complete yet."""
        table = work.encoding.table
        return {
            "prompt_embedding_table": self._no_rows if table is None else table[None],
            "prompt_vocab_size": [[0 if table is None else len(table)]],
            "media_hash": [[media_hash(work.encoding.digest)]],
            "perception_spans": [*work.preprocess_span, work.began, time.time()],
        }
