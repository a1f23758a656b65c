"""The decoders of video files behind one interface, and the choice between them.

PyAV is the default. decord, the reference's own decoder, is optional: it cannot open AV1 or raw streams, does not reach the
end of MPEG-TS, counts frames that playback never shows (edit lists), and a crafted file (an index that claims 2^31 frames)
aborts its process. nvdec is PyAV with the pictures decoded on an NVIDIA GPU.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.messages import Frames

if TYPE_CHECKING:
    from videollama_core.media.video import Segment

DECODERS = ("pyav", "decord", "nvdec")
Fit: TypeAlias = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> the form in which a picture is kept
FrameDecoder: TypeAlias = "Callable[[bytes, Segment, int | None, Fit], Frames]"
DECODER_VARIABLE = "VL2_DECODER"  # names the stages' decoder; pyav if it is not set


def as_it_is(picture: np.ndarray) -> np.ndarray:
    return picture


def frame_decoder(name: str | None = None) -> FrameDecoder:
    """A decoder's function (file, segment, num_frames, fit) -> Frames; without a name, the environment's decoder.

    Raises: InvalidRequest if it is unknown, not installed, or not available on this machine.
    """
    name = name or os.environ.get(DECODER_VARIABLE) or DECODERS[0]
    if name not in DECODERS:
        raise InvalidRequest(f"the decoder {name!r} is unknown; choose one of {', '.join(DECODERS)}")
    if name == "decord":
        if importlib.util.find_spec("decord") is None:
            raise InvalidRequest(
                "the decoder decord was requested, but is not installed; install it "
                "(pip install 'videollama2-service[decord]', Linux on x86-64 only), or omit --decoder to use PyAV"
            )
        from videollama_core.media.decord_file import decode_video
    elif name == "nvdec":
        from videollama_core.media.nvdec_file import check_nvdec, decode_video

        check_nvdec()
    else:
        from videollama_core.media.decoding.video_file import decode_video
    return decode_video
