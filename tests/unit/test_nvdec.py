"""NVDEC as far as it goes without a GPU: PyAV and FFmpeg are real, and run on a stand-in for NVIDIA's driver."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWDeviceType

from made_files import Made
from nvidia_driver import build_driver, expected
from videollama_core.media import nvdec_file
from videollama_core.media.rgb import FROM_GPU, ToRgb, part_chroma
from videollama_core.media.video import Segment, load_media
from videollama_core.media.video_decoders import frame_decoder
from videollama_core.protocol.errors import InvalidRequest

GROUPS = {"crf": "24", "x264-params": "keyint=8:bframes=3:b-pyramid=normal:scenecut=0"}
ON_GPU = (
    Made("one_group.mp4", options={"crf": "24", "x264-params": "keyint=250:bframes=2"}),
    Made("groups.mp4", options=GROUPS, frames=60),
    Made(
        "open_groups.mp4", options={"crf": "24", "x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}, frames=60
    ),
    Made("variable.mp4", options=GROUPS, ticks=lambda number: number * (number + 3) // 2),
    Made("turned.mp4", options=GROUPS, turn=90),
    Made("cropped.mp4", options=GROUPS, size=(102, 66)),
)
ON_PROCESSOR = (
    Made("ten_bits.mp4", pixels="yuv420p10le", options=GROUPS),
    Made("more_colour.mp4", pixels="yuv422p", options=GROUPS),
    Made("vp9.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    Made("av1.webm", codec="libsvtav1", options={"preset": "10"}),
    Made("prores.mov", codec="prores_ks", pixels="yuv422p10le", frames=8),
)
SEGMENTS = ({}, {"start": 0.4, "end": 0.8}, {"num_frames": 3, "sampling": "keyframes"})
SCRIPT = """
import json, sys
import numpy as np
from videollama_core.media.video import Segment, load_media
from videollama_core.protocol.errors import VideoLlamaError
for number, (path, segment) in enumerate(json.loads(sys.argv[1])):
    try:
        found = load_media("video", [open(path, "rb").read()], Segment(**segment), 8, "nvdec")
        np.savez(f"{sys.argv[2]}/{number}.npz", index=found.index, time=found.time, rgb=np.stack(found.rgb))
    except VideoLlamaError as error:
        print(json.dumps([number, type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("driver"))


def decode(driver, tmp_path, wanted, **environment):
    """What nvdec returns for each (path, segment): arrays, or the type and message of an error."""
    words = json.dumps([(str(path), segment) for path, segment in wanted])
    done = subprocess.run(
        [sys.executable, "-c", f"{driver}\n{SCRIPT}", words, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        check=True,
    )
    errors = {number: (name, said) for number, name, said in map(json.loads, done.stdout.splitlines())}
    return [errors.get(place) or np.load(tmp_path / f"{place}.npz") for place in range(len(wanted))]


def test_nvdec_decodes_the_same_frames_as_pyav(driver, tmp_path):
    wanted = [(made.write(tmp_path), segment) for made in ON_GPU for segment in SEGMENTS]
    turned = 0
    for (path, segment), by_nvdec in zip(wanted, decode(driver, tmp_path, wanted), strict=True):
        by_pyav = load_media("video", [path.read_bytes()], Segment(**segment), 8, "pyav")
        assert by_nvdec["index"].tolist() == by_pyav.index.tolist(), (path.name, segment)
        assert np.array_equal(by_nvdec["time"], by_pyav.time), (path.name, segment)
        pictures = expected(path)
        for number, seen, other in zip(by_pyav.index, by_nvdec["rgb"], by_pyav.rgb, strict=True):
            assert seen.shape == other.shape
            turned += seen.shape != pictures[number].shape
            assert np.array_equal(
                np.unique(seen.reshape(-1, 3), axis=0), np.unique(pictures[number].reshape(-1, 3), axis=0)
            )
    assert turned


def test_codecs_that_nvdec_lacks_are_decoded_on_the_cpu(driver, tmp_path):
    wanted = [(made.write(tmp_path), {}) for made in ON_PROCESSOR]
    for (path, _), by_nvdec in zip(wanted, decode(driver, tmp_path, wanted), strict=True):
        by_pyav = load_media("video", [path.read_bytes()], Segment(), 8, "pyav")
        assert by_nvdec["index"].tolist() == by_pyav.index.tolist() and np.array_equal(
            by_nvdec["time"], by_pyav.time
        ), path.name
        assert np.array_equal(by_nvdec["rgb"], np.stack(by_pyav.rgb)), path.name


def test_errors_equal_those_of_pyav(driver, tmp_path):
    path = ON_GPU[1].write(tmp_path)
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:-5000])
    (tmp_path / "text.mp4").write_bytes(b"text")
    wanted = [(path, {"start": 90.0, "end": 91.0}), (tmp_path / "cut.mp4", {}), (tmp_path / "text.mp4", {})]
    for (bad, segment), error in zip(wanted, decode(driver, tmp_path, wanted), strict=True):
        with pytest.raises(InvalidRequest) as raised:
            load_media("video", [bad.read_bytes()], Segment(**segment), 8, "pyav")
        assert error == (type(raised.value).__name__, str(raised.value))


def test_a_driver_without_a_gpu_is_an_error_of_the_server_and_not_of_the_file(driver, tmp_path):
    ((name, said),) = decode(driver, tmp_path, [(ON_GPU[0].write(tmp_path), {})], VL2_NO_GPU="1")
    assert name == "StageFailed" and "no GPU can be opened" in said and "--decoder pyav" in said


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("LIBRARIES", ("libno-driver.so.1",), "libno-driver.so.1 .* is not found.*NVIDIA_DRIVER_CAPABILITIES"),
        ("hwdevices_available", lambda: ["qsv"], "built without CUDA"),
    ],
)
def test_a_machine_without_nvdec_is_refused_before_any_work(what, value, said, monkeypatch):
    monkeypatch.setattr(nvdec_file, what, value)
    with pytest.raises(InvalidRequest, match=said):
        frame_decoder("nvdec")


def test_the_documented_codecs_are_those_the_wheel_decodes_with_nvdec():
    """docs/gpu.md lists them."""
    for name in ("h264", "hevc", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "mjpeg"):
        assert any(config.device_type == HWDeviceType.cuda for config in av.Codec(name, "r").hardware_configs), name
    for name in ("libdav1d", "prores"):
        assert not av.Codec(name, "r").hardware_configs


@pytest.mark.parametrize("kind", ["nv12", "p010le"])
@pytest.mark.parametrize("colours", [{}, {"colorspace": 1, "color_range": 2}])
@pytest.mark.parametrize("size", [(128, 96), (102, 66)])
def test_colours_of_equal_samples_are_equal(kind, colours, size, tmp_path):
    """A conforming decoder returns libavcodec's samples; only their layout in memory is specific to NVDEC."""
    name, shift = FROM_GPU[kind]
    path = Made("colours.mkv", pixels=name, size=size, colours=colours, frames=2).write(tmp_path)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        planar, from_gpu = frame.to_ndarray(), av.VideoFrame(*size, kind)
    assert not colours or frame.format.name in ("yuvj420p", "yuv420p10le")
    width, height = size
    luma, *chroma = np.split(planar.reshape(-1), [width * height, width * height * 5 // 4])
    both = np.stack(chroma, -1)
    for plane, values in zip(
        from_gpu.planes, (luma.reshape(height, width), both.reshape(height // 2, width)), strict=True
    ):
        rows = np.full((plane.height, plane.line_size // planar.itemsize), 77, planar.dtype)
        rows[:, :width] = values << shift
        plane.update(rows.tobytes())
    from_gpu.pts, from_gpu.time_base = frame.pts, frame.time_base
    from_gpu.colorspace, from_gpu.color_range = frame.colorspace, frame.color_range
    assert np.array_equal(ToRgb(from_gpu=True)(from_gpu), ToRgb()(frame))
    assert np.array_equal(part_chroma(from_gpu).to_ndarray(), planar)
    assert part_chroma(frame) is frame
