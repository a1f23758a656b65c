"""A video file -> its chosen frames, its pictures decoded by NVDEC, the video decoder of NVIDIA's GPUs.

PyAV is used here too: the FFmpeg in its wheels can decode on a GPU (`av.codec.hwaccel`), so that headers, order, times, rotation and the
choice of frames come from the same code. Codecs that NVDEC does not support (H.264 of more than 8 bits on most cards, ProRes, and AV1, for
which PyAV uses dav1d) are decoded on the CPU. Written from the source of PyAV 18.1.0 (its wheels contain FFmpeg 8.1) and of FFmpeg 9.0.1's
nvdec.c and hwcontext_cuda.c; tested with a driver that stands in for NVIDIA's (tests/nvidia_driver.c), never on a GPU.
"""

import ctypes

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

from videollama_core.media.decoding import video_file
from videollama_core.media.video import Segment
from videollama_core.media.video_decoders import Fit, as_it_is
from videollama_core.protocol.errors import InvalidRequest, StageFailed
from videollama_core.protocol.messages import Frames

LIBRARIES = ("libcuda.so.1", "libnvcuvid.so.1")  # of the driver, under the names that FFmpeg opens


def check_nvdec() -> None:
    """Raises: InvalidRequest if NVDEC is not available. Does not initialize CUDA, which would not survive a fork."""
    if "cuda" not in hwdevices_available():
        raise InvalidRequest(
            f"the decoder nvdec was requested, but PyAV {av.__version__} was built without CUDA; install PyAV's own wheel "
            "(pip install --force-reinstall --only-binary av av), or omit --decoder"
        )
    for library in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise InvalidRequest(
                f"the decoder nvdec was requested, but {library} of NVIDIA's driver is not found: install the driver, in a container "
                "set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video, or omit --decoder to decode on the CPU"
            ) from error


def decode_video(data: bytes, segment: Segment, num_frames: int | None, fit: Fit = as_it_is) -> Frames:
    """Like decoding.video_file.decode_video, on the first GPU of CUDA_VISIBLE_DEVICES.

    Damage within a picture is not detected: NVDEC conceals it.
    Raises: the same; StageFailed if no GPU can be opened.
    """
    device = HWAccel("cuda", allow_software_fallback=True, options={"primary_ctx": "1"})
    try:
        context = device.create(av.Codec("h264", "r"))  # kept until the end: every opening of the file below shares it
    except (av.FFmpegError, NotImplementedError) as error:
        raise StageFailed(
            f"no GPU can be opened for the decoder nvdec ({error}): check nvidia-smi, or serve with --decoder pyav"
        ) from error
    try:
        return video_file.decode_video(data, segment, num_frames, fit, hwaccel=device)
    finally:
        del context
