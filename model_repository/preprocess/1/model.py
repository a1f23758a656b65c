"""Media + options -> uint8 frames at tower size. Decoding lives here alone: a hostile file can kill only this process."""

import time

from videollama_core.contract import PREPROCESS
from videollama_core.pixels import to_tower_size
from videollama_core.stage import PythonStage, bundle_of, scalar
from videollama_core.video import Segment, load_media


class TritonPythonModel(PythonStage):
    contract = PREPROCESS

    def load(self, args):
        self.config = bundle_of(args).config

    def run(self, media, media_kind, start, end):
        began = time.time()
        segment = Segment(scalar(start, "start"), scalar(end, "end"))
        frames = load_media(scalar(media_kind, "media_kind"), list(media), segment, self.config.num_frames)
        return {
            "frames": to_tower_size(frames.rgb, self.config.pixels),
            "frame_index": frames.index,
            "frame_time": frames.time,
            "preprocess_span": [began, time.time()],
        }
