"""Media and options to pixels and filterbanks, decoded in a sandboxed process (sandbox/)."""

import time
from typing import Any

from videollama_core.media.video import Segment
from videollama_core.protocol.contract import PREPROCESS
from videollama_server.sandbox.callers import is_waiting, who_waits
from videollama_server.sandbox.decoder import ConfinedDecoder
from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar


class PreprocessStage(PythonStage):
    """The stage `preprocess`: encoded media to frames uint8 [T, S, S, 3] and a filterbank float32 [R, F]."""

    contract = PREPROCESS

    def load(self, args: dict[str, str]) -> None:
        self.decoder = ConfinedDecoder(bundle_of(args).config)

    def run(self, media: Any, media_kind: Any, caller: Any, **options: Any) -> dict[str, Any]:
        began = time.time()
        segment = Segment(**{name: scalar(value, name) for name, value in options.items()})
        note = scalar(caller, "caller")
        kind = scalar(media_kind, "media_kind")
        inputs = self.decoder.prepare(kind, list(media), segment, lambda: is_waiting(note), who_waits(note))
        return {
            "frames": inputs.frames,
            "filterbank": inputs.filterbank,
            "frame_index": inputs.index,
            "frame_time": inputs.time,
            "preprocess_span": [began, time.time()],
        }

    def finalize(self) -> None:
        self.decoder.close()
        super().finalize()
