"""Media as received in a request -> the inputs of the encoders: pixels and filterbanks."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from videollama_core.media.audio import BINS, load_audio
from videollama_core.media.pixels import fit_picture
from videollama_core.media.video import Segment, load_media
from videollama_core.model.config import AUDIO_KINDS, ModelConfig
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.messages import EncoderInputs


def prepare(
    kind: str,
    files: Sequence[bytes],
    segment: Segment,
    config: ModelConfig,
    pad_to_square: bool = False,
    decoder: str | None = None,
) -> EncoderInputs:
    """Media of a kind (contract.MEDIA_KINDS) -> pixels and filterbank.

    Args:
        pad_to_square: as `pad` of pixels.fit_picture.
        decoder: of video files, one of video_decoders.DECODERS; None for the one that the environment names.
    Raises: UnreadableMedia, BadSegment, InvalidRequest.
    """
    if kind in AUDIO_KINDS:
        config.tokens_of(kind)  # raises if the checkpoint has no audio tower
        if len(files) != 1:
            raise InvalidRequest(f"{kind} takes exactly one file, found {len(files)}")
    segment.refuse_for(kind)
    if kind == "audio":
        size = config.pixels.size
        filterbank = load_audio(kind, files[0], segment)
        return EncoderInputs(np.zeros((0, size, size, 3), np.uint8), filterbank, np.zeros(0, np.int64), np.zeros(0))
    num_frames = config.frames_of(segment.num_frames)
    pictures = "video" if kind == "video_with_audio" else kind
    fit = partial(fit_picture, config=config.pixels, pad=pad_to_square)
    chosen = load_media(pictures, files, segment, num_frames, decoder, fit)
    # After the pictures, so that a file without any is rejected before its audio is decoded.
    filterbank = load_audio(kind, files[0], segment) if kind in AUDIO_KINDS else np.zeros((0, BINS), np.float32)
    return EncoderInputs(np.stack(chosen.rgb), filterbank, chosen.index, chosen.time)
