"""The command line without a server: help, exit codes and one-line errors."""

import re
import subprocess
import sys

import pytest

import preloaded
from conftest import MEDIA, ROOT, checkpoint
from videollama_client.cli import main_group, run


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


_SERVED = ("serve", "nowhere")
_EVAL = ("eval", "shapes", str(ROOT / "benchmarks/shapes"), "--out", "/proc/nowhere")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("doctor", "--port", "99999"), "'--port'"),
        (("doctor", "--port", "-1"), "'--port'"),
        (("gateway", "--host", ""), "--host is empty"),
        (("gateway", "--max-body-bytes", "0"), "'--max-body-bytes'"),
        ((*_SERVED, "--start-seconds", "nan"), "'--start-seconds'"),
        ((*_SERVED, "--drain-seconds", "-1"), "'--drain-seconds'"),
        ((*_SERVED, "--drain-delay-seconds", "inf"), "'--drain-delay-seconds'"),
        (("bench", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("bench", "--timeout", "nan"), "--timeout is nan"),
        (("bench", "--target-first-text", "nan"), "--target-first-text is nan"),
        (("bench", "--target-answer", "-1"), "--target-answer is -1"),
        (("bench", "--compare", __file__), "is not a bench.json"),
        ((*_EVAL, "--limit", "0"), "'--limit'"),
        ((*_EVAL, "--concurrency", "0"), "'--concurrency'"),
        ((*_EVAL, "--num-frames", "0"), "'--num-frames'"),
        ((*_EVAL, "--max-new-tokens", "0"), "'--max-new-tokens'"),
        ((*_EVAL, "--timeout", "nan"), "--timeout is nan"),
        ((*_EVAL, "--vcd-alpha", "-1"), "vcd_alpha is -1"),
        (("shapes", "--out", "/proc/nowhere", "--pictures", "-1"), "'--pictures'"),
        (("shapes", "--out", "/proc/nowhere", "--tower-steps", "-1"), "'--tower-steps'"),
        (("shapes", "--out", "/proc/nowhere", "--add-audio-tower", "nowhere"), "'--add-audio-tower'"),
        (("demo", "--max-new-tokens", "0"), "'--max-new-tokens'"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_done(words, text, capsys):
    assert run(lambda **options: main_group(list(words), **options)) == 2
    error = capsys.readouterr().err
    assert text in error and "server" not in error


def test_a_bench_that_cannot_be_written_sends_no_load(capsys):
    """It ends before it waits for a server."""
    assert run(lambda **options: main_group(["bench", "--out", "/proc/nowhere"], **options)) == 1
    assert "/proc/nowhere" in capsys.readouterr().err


def test_a_chat_without_standard_input_says_so():
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m videollama_client chat <&-"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("vl2: InvalidRequest: there is no standard input")


def test_a_demo_whose_conversion_fails_ends_with_its_error(tmp_path):
    pytest.importorskip("torch")
    done = vl2("demo", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 1 and "config.json is missing" in done.stderr and "Traceback" not in done.stderr
