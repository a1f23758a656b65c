"""With -m slow: every kind of file through real decord, and the pixels under every Pillow, in environments of their own."""

import subprocess
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import pytest

from conftest import ROOT
from made_files import FILES
from videollama_core.media.pixels import to_tower_size
from videollama_core.media.rgb import ToRgb
from videollama_core.model.config import PixelConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIGLIP = PixelConfig(384, False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Everything that may differ: the largest difference in levels, and the largest share of values that differ.
DIFFERENCES = {
    # Odd width, where chroma is spread here before it is scaled, and there after.
    "ffv1_101x67.mkv": (1, 0.002),
    "ffv1_10_101x68.mkv": (1, 0.002),
    "vp9_101x67.webm": (1, 0.002),
    # 10 bits of 4:2:2 are scaled to 4:4:4 before they are turned.
    "turned_prores.mov": (1, 0.12),
    # Chroma halved in height alone: nobody's camera makes it.
    "ffv1_yuv440p.mkv": (64, 0.95),
}
UNREADABLE = {"h264.h264", "av1.webm"}  # to decord


def environment(folder: Path, *packages: str) -> Path:
    """The Python of a new environment with these packages from PyPI."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, capture_output=True, timeout=900)
    return python


@pytest.fixture(scope="module")
def decord_python(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("decord"), "decord==0.6.0", "pillow==10.4.0", "numpy<2")


@pytest.mark.parametrize("made", FILES, ids=lambda made: made.name)
def test_frames_equal_decord_but_for_what_is_stated(made, decord_python, tmp_path):
    path = made.write(tmp_path)
    script = Path(__file__).with_name("decord_frames.py")
    ran = subprocess.run([decord_python, script, path], capture_output=True, text=True, timeout=120)
    to_rgb = ToRgb()
    with av.open(str(path)) as container:
        ours = np.stack([to_rgb(frame) for frame in container.decode(video=0)])
    assert len(ours) == made.frames
    assert (ran.returncode != 0) == (made.name in UNREADABLE), ran.stderr
    if ran.returncode != 0:
        return
    theirs = np.load(f"{path}.npz")
    assert theirs["frames"].shape == ours.shape
    off = np.abs(theirs["frames"].astype(np.int16) - ours)
    levels, share = DIFFERENCES.get(made.name, (0, 0.0))
    assert off.max() <= levels and np.mean(off > 0) <= share, (off.max(), np.mean(off > 0))
    assert bool(off.any()) == (made.name in DIFFERENCES)  # a stated difference that is gone is to be struck out
    if not off.any():
        middle = ours[len(ours) // 2]
        assert np.array_equal(to_tower_size([middle], SIGLIP)[0], theirs["pixels"])


@pytest.mark.parametrize("pillow", ["10.4.*", "11.*", "12.*", "13.*"])
def test_pixels_are_exact_with_every_pillow(pillow, tmp_path):
    installed = (f"{name}=={version(name)}" for name in ("av", "numpy", "safetensors", "soundfile"))
    python = environment(tmp_path, f"pillow=={pillow}", "pytest", "pytest-timeout", *installed)
    # torch, which conftest.py needs and the pixels do not, is this environment's own: it comes after the new one's packages.
    site = next(tmp_path.glob("lib/python3*/site-packages"))
    (site / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_pixels.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    shown = subprocess.run([python, "-c", "import PIL; print(PIL.__version__)"], capture_output=True, text=True)
    assert shown.stdout.startswith(pillow.removesuffix("*")), shown.stdout
