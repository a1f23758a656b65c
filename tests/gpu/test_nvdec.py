"""NVDEC on a GPU: it really decodes, and its pictures are close to libavcodec's."""

import io
import time

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel

from made_files import Made
from videollama_core.media.video import Segment, load_media
from videollama_core.media.video_decoders import frame_decoder
from videollama_core.protocol.errors import InvalidRequest

CLIPS = (
    Made("h264.mp4", size=(1280, 720), frames=100),
    Made("hevc.mp4", "libx265", size=(1280, 720), frames=100),
    Made("hevc_10.mp4", "libx265", "yuv420p10le", size=(640, 480)),
    Made("vp9.webm", "libvpx-vp9", size=(640, 480), options={"deadline": "realtime", "cpu-used": "8"}),
    Made("turned.mp4", size=(640, 360), turn=90),
    Made("full.mkv", size=(640, 360), colours={"colorspace": 1, "color_range": 2}),
    Made("cropped.mp4", size=(350, 202)),
)


@pytest.fixture(scope="module", autouse=True)
def _nvdec(device):
    if device.type == "cpu":
        pytest.skip("a rehearsal on the CPU")
    try:
        frame_decoder("nvdec")
    except InvalidRequest as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("made", CLIPS, ids=lambda made: made.name)
def test_frames_equal_those_of_pyav(made, tmp_path):
    data = made.write(tmp_path).read_bytes()
    with av.open(
        io.BytesIO(data), hwaccel=HWAccel("cuda", allow_software_fallback=False, is_hw_owned=True)
    ) as container:
        assert next(container.decode(video=0)).format.name == "cuda"
    decoded, spent = {}, {}
    for decoder in ("pyav", "nvdec"):
        began = time.perf_counter()
        decoded[decoder] = load_media("video", [data], Segment(), 16, decoder)
        spent[decoder] = time.perf_counter() - began
    by_pyav, by_nvdec = decoded["pyav"], decoded["nvdec"]
    assert by_nvdec.index.tolist() == by_pyav.index.tolist() and np.array_equal(by_nvdec.time, by_pyav.time)
    apart = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(by_pyav.rgb, by_nvdec.rgb, strict=True))
    print(f"{made.name}: at most {apart} levels apart; seconds {spent}")
    assert apart == 0
