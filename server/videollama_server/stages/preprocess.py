"""Media + options -> pixels and filterbanks. Decoding lives here alone: a hostile file can kill only this process."""

import time
from typing import Any

from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.protocol.contract import PREPROCESS
from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar


class PreprocessStage(PythonStage):
    contract = PREPROCESS

    def load(self, args: dict[str, str]) -> None:
        self.config = bundle_of(args).config

    def run(self, media: Any, media_kind: Any, start: Any, end: Any) -> dict[str, Any]:
        began = time.time()
        segment = Segment(scalar(start, "start"), scalar(end, "end"))
        found = prepare(scalar(media_kind, "media_kind"), list(media), segment, self.config)
        return {
            "frames": found.frames,
            "filterbank": found.filterbank,
            "frame_index": found.index,
            "frame_time": found.time,
            "preprocess_span": [began, time.time()],
        }
