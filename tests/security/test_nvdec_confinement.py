"""With --decoder nvdec: video files are decoded in a sandbox that may open devices, everything else in the full one."""

import os
import sys

import numpy as np
import pytest

from conftest import MEDIA
from nvidia_driver import build_driver
from videollama_core.checkpoint.read_config import published_config
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.media.video_decoders import DECODER_VARIABLE
from videollama_core.protocol.errors import StageFailed
from videollama_server.sandbox import confinement
from videollama_server.sandbox.decoder import ConfinedDecoder

CONFIG = published_config("VideoLLaMA2.1-7B-AV")
LEFT_OUT = "not in force for video files: nvdec needs devices"
CONFINED = set(confinement.examine().values()) == {"in force"}
VIDEO, PICTURE, SOUND = "plain_96x64.mp4", "sora.png", "stereo_44k1_2s.wav"
# Says what a file that has taken its process over may do, in place of decoding it.
TELLS = """
    import videollama_core.media.preprocess as preprocess
    def prepare(*_):
        import ctypes, os, resource
        try:
            os.open("/etc/passwd", os.O_RDONLY)
        except OSError:
            raise RuntimeError("nothing opens")
        gains = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) != 1  # PR_GET_NO_NEW_PRIVS
        bounded = resource.getrlimit(resource.RLIMIT_DATA)[0] < 2**33 and resource.getrlimit(resource.RLIMIT_CPU)[0] <= 120
        raise RuntimeError(f"files open, privileges gained: {gains}, bounded: {bounded}")
    preprocess.prepare = prepare
"""


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """Starts an nvdec decoder on a stand-in for NVIDIA's driver; its processes run `more` first."""
    code = build_driver(tmp_path)
    started = []

    def start(more: str = "") -> ConfinedDecoder:
        (tmp_path / "sitecustomize.py").write_text(
            f"import sys\nif 'videollama_server.sandbox.spawner' in ' '.join(sys.orig_argv):\n    {code}\n{more}"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.setenv(DECODER_VARIABLE, "nvdec")
        started.append(ConfinedDecoder(CONFIG))
        return started[-1]

    yield start
    for decoder in started:
        decoder.close()


def test_a_video_is_decoded_on_the_gpu_and_the_log_names_the_missing_protections(on_gpu, caplog, monkeypatch):
    decoder = on_gpu()
    if CONFINED:
        assert decoder.in_force == dict.fromkeys(confinement.PARTS, LEFT_OUT)
        assert f"decoding: landlock {LEFT_OUT}" in caplog.text
    monkeypatch.setenv(DECODER_VARIABLE, "pyav")
    for name, kind in ((VIDEO, "video"), (PICTURE, "image"), (SOUND, "audio")):
        data = (MEDIA / name).read_bytes()
        by_nvdec, by_pyav = decoder.prepare(kind, [data], Segment()), prepare(kind, [data], Segment(), CONFIG)
        assert np.array_equal(by_nvdec.index, by_pyav.index) and np.array_equal(
            by_nvdec.time, by_pyav.time, equal_nan=True
        )
        # The stand-in's pictures are of one colour each.
        assert np.array_equal(by_nvdec.frames, by_pyav.frames) == (kind != "video")
        assert np.array_equal(by_nvdec.filterbank, by_pyav.filterbank)


@pytest.mark.skipif(not CONFINED, reason="this kernel has no Landlock or seccomp")
@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        (VIDEO, "video", "files open, privileges gained: False, bounded: True"),
        (VIDEO, "video_with_audio", "files open, privileges gained: False, bounded: True"),
        (PICTURE, "image", "nothing opens"),
        (SOUND, "audio", "nothing opens"),
    ],
)
def test_what_a_file_can_access(name, kind, said, on_gpu):
    decoder = on_gpu(TELLS)
    with pytest.raises(StageFailed, match=said):
        decoder.prepare(kind, [(MEDIA / name).read_bytes()], Segment())


def test_without_a_driver_the_stage_does_not_start(monkeypatch, capfd):
    monkeypatch.setenv(DECODER_VARIABLE, "nvdec")
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    try:
        ConfinedDecoder(CONFIG).close()
    except StageFailed:
        assert "NVIDIA's driver is not found" in capfd.readouterr().err
    else:
        pytest.skip("this machine has the driver")
