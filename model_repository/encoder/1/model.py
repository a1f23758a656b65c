"""Pixels and filterbanks -> media tokens: vision encoder, connector, audio encoder."""

import time

from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar

from videollama_core.contrast import Noise
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.protocol.contract import ENCODER


class TritonPythonModel(PythonStage):
    contract = ENCODER

    def load(self, args):
        self.encoder = MediaEncoder(bundle_of(args))

    def run(self, frames, filterbank, preprocess_span, vcd_noise_step, seed):
        began = time.time()
        noise = (
            None
            if vcd_noise_step is None
            else Noise(scalar(vcd_noise_step, "vcd_noise_step"), scalar(seed, "seed") or 0)
        )
        table, media_hash = self.encoder.encode_media(frames, filterbank, noise)
        return {
            "prompt_embedding_table": table[None],
            "prompt_vocab_size": [[len(table)]],
            "media_hash": [[media_hash]],
            "perception_spans": [*(preprocess_span if preprocess_span is not None else (0, 0)), began, time.time()],
        }
