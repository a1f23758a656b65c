"""`vl2 serve` and `vl2 ask` as a user runs them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import tritonclient.grpc as triton

from conftest import MEDIA, ROOT, case
from service.servers import alive, children, serving, start, vl2
from videollama_client import ServerUnreachable, VideoLlamaError
from videollama_converters.steps.bundle_writer import sha256

VARIANT = "qwen2-clip-8f"


def run(*words: object, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(vl2(*words), capture_output=True, text=True, timeout=timeout)


def test_ask_streams_text_and_prints_json(server_of):
    server, known = server_of(VARIANT), case(VARIANT, "video_basic")
    words = ("ask", known.path, known.facts["instruct"], "--max-new-tokens", known.max_new_tokens, "--url", server.grpc)
    assert run(*words).stdout == known.facts["text"] + "\n"
    answer = json.loads(run(*words, "--json").stdout)
    assert answer["text"] == known.facts["text"] and answer["output_ids"] == known.facts["output_ids"]
    assert answer["finish_reason"] == "length"
    wanted = {"prompt_tokens": 53, "media_tokens": 45, "completion_tokens": 24, "cached_tokens": 97}  # asked before
    assert answer["usage"] == wanted
    assert {"preprocess", "encoder", "prompt", "prefill", "decode", "total"} <= set(answer["seconds"])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((MEDIA / "image_90x50.png",), "image"),
        (("--image", MEDIA / "image_90x50.png"), "image"),
        ((), "text_only"),
        ((MEDIA / "plain_96x64.mp4", "--start", "1.2", "--end", "2.9"), "segment"),
    ],
)
def test_ask_about_pictures_text_and_segments(words, name, server_of):
    known = case(VARIANT, name)
    media = (
        [word for word in words if not str(word).startswith("--")][:1]
        if words and not str(words[0]).startswith("--")
        else []
    )
    options = words[len(media) :]
    result = run(
        "ask",
        *media,
        known.facts["instruct"],
        *options,
        "--max-new-tokens",
        known.max_new_tokens,
        "--url",
        server_of(VARIANT).grpc,
    )
    assert result.stdout == known.facts["text"] + "\n", result.stderr


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("ask", MEDIA / "tone_16k_mono_4s.wav", "What?"), 2, "InvalidRequest: this checkpoint has no audio tower"),
        (
            ("ask", "--video", MEDIA / "tone_16k_mono_4s.wav", "What?"),
            2,
            "UnreadableMedia: the file has no video stream",
        ),
        (("ask", MEDIA / "plain_96x64.mp4", "What?", "--start", "99"), 2, "BadSegment"),
    ],
)
def test_an_error_from_the_server_is_one_line(words, code, reason, server_of):
    result = run(*words, "--url", server_of(VARIANT).grpc)
    assert result.returncode == code and reason in result.stderr and "Traceback" not in result.stderr


def test_health(server_of):
    assert run("health", "--url", server_of(VARIANT).grpc).returncode == 0
    assert run("health", "--url", "127.0.0.1:9").returncode == 3


def test_the_documented_program_of_a_plain_client_gets_the_same_answer(server_of, tmp_path):
    """tritonclient alone, run as in docs/grpc.md except for address, file, question and number of tokens."""
    known = case(VARIANT, "video_basic")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/grpc.md").read_text("utf-8"), re.DOTALL)
    for old, new in {
        "localhost:8001": server_of(VARIANT).grpc,
        "clip.mp4": str(known.path),
        "What happens?": known.facts["instruct"],
        "[64]": f"[{known.max_new_tokens}]",
    }.items():
        assert old in block
        block = block.replace(old, new)
    assert "import videollama" not in block and "from videollama" not in block
    (tmp_path / "script.py").write_text(block)
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == known.facts["text"]


def test_the_model_repository_cannot_be_changed_from_outside(server_of):
    """Loading a model runs code; only `vl2 serve` itself may."""
    with triton.InferenceServerClient(server_of(VARIANT).grpc) as client:
        with pytest.raises(triton.InferenceServerException, match="not offered here"):
            client.unload_model("videollama2")


def test_a_taken_port_is_named(bundle_of):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("serve", bundle_of(VARIANT), "--grpc-port", port)
    assert result.returncode == 1
    assert f"port {port}" in result.stderr and "--grpc-port" in result.stderr and "Traceback" not in result.stderr


def test_a_log_that_cannot_be_written_is_named(bundle_of):
    result = run(
        "serve",
        bundle_of(VARIANT),
        "--grpc-port",
        0,
        "--log",
        "/proc/nowhere/log",
    )
    assert result.returncode == 1 and "/proc/nowhere/log" in result.stderr and "--log" in result.stderr


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path):
    result = run("serve", tmp_path)
    assert result.returncode == 1 and "vl2 convert" in result.stderr


def test_a_stage_that_fails_to_load_reports_its_own_reason(bundle_of, tmp_path):
    """A graph is damaged without changing the manifest: the server ends, and the reason is the stage's."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_of(VARIANT), bundle)
    graph = bundle / "onnx" / "connector.onnx"
    data = bytearray(graph.read_bytes())
    data[:200] = bytes(200)
    graph.write_bytes(data)
    result = run("serve", bundle, "--grpc-port", 0)
    assert result.returncode == 1
    assert "stage encoder" in result.stderr and "connector.onnx cannot be loaded" in result.stderr
    assert sha256(graph) != sha256(bundle_of(VARIANT) / "onnx" / "connector.onnx")


def test_a_bundle_may_be_moved_and_read_only(bundle_of, tmp_path):
    bundle = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(bundle_of(VARIANT), bundle)
    for folder, _, _ in os.walk(bundle):
        os.chmod(folder, 0o555)
    known = case(VARIANT, "text_only")
    with serving(bundle, tmp_path / "log") as server, server.client() as client:
        assert (
            client.ask(known.facts["instruct"], max_new_tokens=known.max_new_tokens).output_ids
            == known.facts["output_ids"]
        )


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopping_server_lets_running_answers_finish(signal_number, endless, tmp_path):
    """The running answer is whole, a new question is refused, the exit code is 0, no process remains, and none crashed."""
    server = start(endless, tmp_path / "log")
    try:
        with server.client() as client:
            stream = client.stream("Tell a long story", max_new_tokens=2000)
            pieces = iter(stream)
            next(pieces)
            stubs = server.pids("tensorrt_llm")
            assert stubs
            server.process.send_signal(signal_number)
            refused: list = []

            def late():
                deadline = time.monotonic() + 20
                while not refused and time.monotonic() < deadline:  # the signal takes a moment on a busy machine
                    time.sleep(0.1)
                    try:
                        client.ask("Too late?", max_new_tokens=1, timeout=3)
                    except VideoLlamaError as error:
                        refused.append(error)

            thread = threading.Thread(target=late)
            thread.start()
            list(pieces)
            assert stream.answer.usage.completion_tokens == 2000
            thread.join(30)
            assert refused
        server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        assert not any(alive(pid) for pid in stubs)
        assert "Fatal Python error" not in server.log.read_text()
        with server.client() as client, pytest.raises(ServerUnreachable):
            client.ask("Anybody?")
    finally:
        if server.process.poll() is None:
            server.process.kill()


def test_a_triton_that_crashes_is_restarted_and_finally_given_up(bundle_of, tmp_path):
    """Killing a stage at the wrong moment aborts Triton 2.51 as a whole; the same addresses answer again."""
    server = start(bundle_of(VARIANT), tmp_path / "log")
    with server.client() as client:
        assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
        for _ in range(3):
            os.kill(server.triton, signal.SIGKILL)
            assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
            client.wait_until_ready(30)  # one that is killed before counts as a start that failed
            server.triton = children(server.process.pid, "tritonserver")[0]
        stubs = server.pids("tensorrt_llm")
        assert stubs
        os.kill(server.triton, signal.SIGKILL)
    stderr = server.process.communicate(timeout=60)[1]
    assert server.process.returncode == 1 and "ended by itself 4 times" in stderr
    assert not any(alive(pid) for pid in stubs)


def test_a_killed_serve_leaves_no_server_behind(bundle_of, tmp_path):
    server = start(bundle_of(VARIANT), tmp_path / "log")
    server.process.kill()
    server.process.communicate(timeout=10)
    deadline = time.monotonic() + 20
    while alive(server.triton) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(server.triton)


def test_two_servers_side_by_side(bundle_of, tmp_path, server_of):
    with serving(bundle_of("mixtral-clip-8f"), tmp_path / "log") as second:
        assert second.grpc != server_of(VARIANT).grpc
        known = case("mixtral-clip-8f", "text_only")
        with second.client() as client:
            assert client.ask(known.facts["instruct"], max_new_tokens=known.max_new_tokens).text == known.facts["text"]
