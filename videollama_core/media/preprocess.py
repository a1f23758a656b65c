"""Media as it comes over the wire -> what the encoders take: pixels and filterbanks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videollama_core.media.audio import BINS, load_sound
from videollama_core.media.pixels import to_tower_size
from videollama_core.media.video import Segment, load_media
from videollama_core.model.config import AUDIO_KINDS, ModelConfig
from videollama_core.protocol.errors import InvalidRequest


@dataclass(frozen=True)
class Prepared:
    frames: np.ndarray  # uint8 [T, S, S, 3]; T = 0 for sound alone, 1 for an image
    filterbank: np.ndarray  # float32 [R, F]; R = 0 for pictures alone
    index: np.ndarray  # int64 [T], as in Frames
    time: np.ndarray  # float64 [T], as in Frames


def prepare(
    kind: str,
    files: Sequence[bytes],
    segment: Segment,
    config: ModelConfig,
    pad_to_square: bool = False,
    decoder: str | None = None,
) -> Prepared:
    """Media of a kind (contract.MEDIA_KINDS) -> pixels and filterbank.

    Args:
        decoder: of video files, one of video_decoders.DECODERS; None for what the environment names.
    Raises: UnreadableMedia, BadSegment, InvalidRequest.
    """
    filterbank = np.zeros((0, BINS), np.float32)
    if kind in AUDIO_KINDS:
        config.tokens_of(kind)  # refuses what this checkpoint cannot hear
        if len(files) != 1:
            raise InvalidRequest(f"{kind} takes exactly one file, found {len(files)}")
        filterbank = load_sound(kind, files[0], segment)
    if kind == "audio":
        size = config.pixels.size
        return Prepared(np.zeros((0, size, size, 3), np.uint8), filterbank, np.zeros(0, np.int64), np.zeros(0))
    chosen = load_media("video" if kind == "video_with_audio" else kind, files, segment, config.num_frames, decoder)
    return Prepared(to_tower_size(chosen.rgb, config.pixels, pad_to_square), filterbank, chosen.index, chosen.time)
