"""Pixels and filterbanks -> media tokens: vision encoder, connector, audio encoder."""

import time
from typing import Any

from videollama_core.contrast import Noise
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.protocol.contract import ENCODER
from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar


class EncoderStage(PythonStage):
    contract = ENCODER

    def load(self, args: dict[str, str]) -> None:
        self.encoder = MediaEncoder(bundle_of(args))

    def run(self, frames: Any, filterbank: Any, preprocess_span: Any, vcd_noise_step: Any, seed: Any) -> dict[str, Any]:
        began = time.time()
        step = scalar(vcd_noise_step, "vcd_noise_step")
        noise = None if step is None else Noise(step, scalar(seed, "seed") or 0)
        table, media_hash = self.encoder.encode_media(frames, filterbank, noise)
        return {
            "prompt_embedding_table": table[None],
            "prompt_vocab_size": [[len(table)]],
            "media_hash": [[media_hash]],
            "perception_spans": [*(preprocess_span if preprocess_span is not None else (0, 0)), began, time.time()],
        }
