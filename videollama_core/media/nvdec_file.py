"""A video file -> its chosen frames, its pictures decoded by NVDEC, the video decoder of NVIDIA's GPUs.

The way is PyAV's: its wheels' FFmpeg decodes on a GPU by itself (`av.codec.hwaccel`), so that headers, order, times, rotation and which
frames are looked at come from the same code. What NVDEC has no decoder for (H.264 of more than 8 bits on most cards, ProRes, AV1, which PyAV
gives to dav1d) the processor decodes. Written from the source of PyAV 18.1.0 (its wheels hold FFmpeg 8.1) and of FFmpeg 9.0.1's nvdec.c and
hwcontext_cuda.c; run on a driver that stands in for NVIDIA's (tests/nvidia_driver.c), never on a GPU.
"""

import ctypes

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

from videollama_core.media.decoding import video_file
from videollama_core.media.video import Segment
from videollama_core.media.video_decoders import Fit, as_it_is
from videollama_core.protocol.errors import InvalidRequest, StageFailed
from videollama_core.protocol.messages import Frames

LIBRARIES = ("libcuda.so.1", "libnvcuvid.so.1")  # of the driver, by the names that FFmpeg opens them by


def check_nvdec() -> None:
    """No CUDA is begun, which would not outlive a fork. Raises: InvalidRequest where NVDEC cannot be had."""
    if "cuda" not in hwdevices_available():
        raise InvalidRequest(
            f"the decoder nvdec was asked for, and PyAV {av.__version__} was built without CUDA; install PyAV's own wheel "
            "(pip install --force-reinstall --only-binary av av), or leave --decoder out"
        )
    for library in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise InvalidRequest(
                f"the decoder nvdec was asked for, and {library} of NVIDIA's driver is not found here: install the driver, in a container "
                "set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video, or leave --decoder out for the processor"
            ) from error


def decode_video(data: bytes, segment: Segment, num_frames: int | None, fit: Fit = as_it_is) -> Frames:
    """As decoding.video_file.decode_video, on the first GPU of CUDA_VISIBLE_DEVICES.

    Damage within a picture is not noticed: NVDEC shows something in its place.
    Raises: what that does; StageFailed if no GPU can be opened.
    """
    device = HWAccel("cuda", allow_software_fallback=True, options={"primary_ctx": "1"})
    try:
        context = device.create(av.Codec("h264", "r"))  # kept until the end: one for all that opens the file below
    except (av.FFmpegError, NotImplementedError) as error:
        raise StageFailed(
            f"no GPU can be opened for the decoder nvdec ({error}): look at nvidia-smi, or serve with --decoder pyav"
        ) from error
    try:
        return video_file.decode_video(data, segment, num_frames, fit, hwaccel=device)
    finally:
        del context
