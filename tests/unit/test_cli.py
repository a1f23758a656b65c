"""The command line without a server: help, exit codes and one-line errors."""

import re
import subprocess
import sys

import pytest

import preloaded
from conftest import MEDIA, checkpoint


def vl2(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "videollama_client", *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "command", ["ask", "chat", "convert", "serve", "demo", "health", "train", "shapes", "eval", "plan", "doctor"]
)
def test_help_ends_with_a_real_example(command):
    result = vl2(command, "--help")
    assert result.returncode == 0
    assert command == "health" or re.search(rf"Examples?:\s+vl2 {command}", result.stdout)


def test_help_lists_every_command_without_importing_torch():
    script = "import sys; from videollama_client.cli import main_group, run; run(lambda **k: main_group(['--help'], **k)); assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("ask", "chat", "convert", "serve", "demo", "health", "train", "shapes", "eval", "plan", "doctor"):
        assert f"  {command}" in result.stdout


@pytest.mark.parametrize("command", ["convert", "serve"])
def test_a_command_names_its_missing_packages(command):
    """As in the bare install: torch and jinja2 cannot be imported."""
    script = (
        "import sys; sys.modules['torch'] = sys.modules['jinja2'] = None\n"
        "from videollama_client.cli import main_group, run\n"
        f"sys.exit(run(lambda **k: main_group([{command!r}, 'x', *['--out', 'y'][: 2 * ({command!r} == 'convert')]], **k)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1 and "needs the package" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("ask", "hi", "--url", "127.0.0.1:9"), 3, "ServerUnreachable"),
        (("ask", "missing.mp4", "hi"), 2, "UnreadableMedia: missing.mp4 cannot be read: No such file"),
        (("ask", "a", "b", "c"), 2, "quotes"),
        (("ask", "hi", "--temperature", "nan"), 2, "BadSampling: temperature"),
        (("ask", "hi", "--max-new-tokens", "0"), 2, "BadSampling: max_new_tokens"),
        (("ask", "hi", "--colour", "red"), 2, "No such option"),
        (("ask", str(MEDIA / "plain_96x64.mp4"), "hi", "--start", "3", "--end", "1"), 2, "BadSegment"),
        (("ask", "missing.wav", "hi"), 2, "UnreadableMedia: missing.wav cannot be read: No such file"),
        (("ask", str(MEDIA / "image_90x50.png"), "hi", "--with-audio"), 2, "with_audio needs a video file"),
        (("chat", "missing.mp4"), 2, "UnreadableMedia: missing.mp4 cannot be read: No such file"),
        (("chat", "--temperature", "nan"), 2, "BadSampling: temperature"),
        (("chat", "a.mp4", "--image", "b.png"), 2, "name the media once"),
        (("chat", str(MEDIA / "image_90x50.png"), "--start", "1"), 2, "BadSegment"),
        (("plan", "--checkpoint", "VideoLLaMA3"), 2, "is not a published checkpoint; they are VideoLLaMA2-7B-Base"),
        (("convert", str(checkpoint("qwen2-clip-8f")), "--out", "/tmp/x", "--dry-run"), 2, "--dry-run is for"),
        (
            (
                "convert",
                str(checkpoint("qwen2-clip-8f")),
                "--out",
                "/tmp/x",
                "--engine",
                "tensorrt",
                "--tp",
                "3",
                "--dry-run",
            ),
            2,
            "does not divide 8 heads",
        ),
        (("serve", "nowhere"), 1, "ArtifactMismatch: nowhere is not a folder"),
        (("convert", "nowhere", "--out", "/tmp/x"), 1, "CheckpointMismatch: nowhere is not a folder"),
        (("convert", str(checkpoint("qwen2-clip-8f")), "--out", "/proc/nowhere"), 1, "/proc/nowhere"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(words, code, text):
    if words[0] in ("convert", "plan"):
        pytest.importorskip("torch")
        result = preloaded.vl2(*words)
    else:
        result = vl2(*words)
    assert result.returncode == code, result.stderr
    assert text in result.stderr and "Traceback" not in result.stderr
