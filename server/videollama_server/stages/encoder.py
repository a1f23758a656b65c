"""Pixels and filterbanks -> media tokens: vision encoder, connector, audio encoder."""

import time
from typing import Any

from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.protocol.contract import ENCODER
from videollama_server.stages.python_backend import PythonStage, bundle_of


class EncoderStage(PythonStage):
    contract = ENCODER

    def load(self, args: dict[str, str]) -> None:
        self.encoder = MediaEncoder(bundle_of(args))

    def run(self, frames: Any, filterbank: Any, preprocess_span: Any) -> dict[str, Any]:
        began = time.time()
        table, media_hash = self.encoder.encode_media(frames, filterbank)
        return {
            "prompt_embedding_table": table[None],
            "prompt_vocab_size": [[len(table)]],
            "media_hash": [[media_hash]],
            "perception_spans": [*(preprocess_span if preprocess_span is not None else (0, 0)), began, time.time()],
        }
