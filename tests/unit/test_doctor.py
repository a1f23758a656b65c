"""vl2 doctor: its findings and its advice."""

import json
import socket
import subprocess
import sys

import pytest

from videollama_core.engines.bundle import Bundle
from videollama_core.engines.machine_checks import FAIL, OK, WARN, check_memory, check_tensorrt, memory_bytes
from videollama_core.media import nvdec_file
from videollama_server.doctor import examine
from videollama_server.sandbox import confinement


def states(findings):
    return {finding.check: finding.state for finding in findings}


def test_this_machine_can_serve():
    state_of = states(examine())
    assert state_of["Python"] == state_of["Triton server"] == state_of["shared memory"] == state_of["engines"] == OK
    assert state_of["GPU"] in (OK, WARN)  # a CPU serves


def test_a_busy_port_is_found():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        finding = next(one for one in examine(ports=(port,)) if one.check == f"port {port}")
    assert finding.state == FAIL and "another port" in finding.advice


def test_a_folder_that_is_not_a_bundle(tmp_path):
    finding = examine(tmp_path)[-1]
    assert (finding.check, finding.state) == ("bundle", FAIL) and "manifest" in finding.advice


def test_a_bundle_for_another_machine(bundle_of):
    bundle = Bundle.open(bundle_of("mistral-clip-8f"))
    assert states(examine(bundle.root))["bundle"] == OK
    assert check_memory(bundle, 2**20)[0].state == OK
    too_large = check_memory(bundle, 2**50)[0]
    assert too_large.state == FAIL and "larger machine" in too_large.advice
    (engines,) = check_tensorrt(bundle, 0)
    assert engines.state in (OK, FAIL) and (engines.state == OK or engines.advice)


def test_the_memory_limit_of_a_container_is_reported(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**20}\n")
    assert memory_bytes(limit) == 2**20
    limit.write_text("max\n")
    assert memory_bytes(limit) == memory_bytes(tmp_path / "absent") > 2**20


def test_nvdec_needs_a_driver_and_weakens_the_sandbox(monkeypatch):
    monkeypatch.setattr(nvdec_file, "LIBRARIES", ("libno-driver.so.1",))
    monkeypatch.setattr(
        confinement, "examine", lambda: {"landlock": "in force", "seccomp": "not available here: no filter"}
    )
    findings = {finding.check: finding for finding in examine(decoder="nvdec")}
    assert findings["video decoder"].state == FAIL and "NVIDIA_DRIVER_CAPABILITIES" in findings["video decoder"].advice
    assert findings["media sandbox"].state == WARN
    assert findings["media sandbox"].detail.startswith(
        "landlock not in force for video files: nvdec needs devices; seccomp not available"
    )
    findings = {finding.check: finding for finding in examine()}
    assert findings["video decoder"].state == OK and "nvdec" not in findings["media sandbox"].detail


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_the_command(words, bundle_of):
    command = [
        sys.executable,
        "-m",
        "videollama_client",
        "doctor",
        str(bundle_of("mistral-clip-8f")),
        "--port",
        "0",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if words:
        assert {finding["check"] for finding in json.loads(done.stdout)} >= {"Python", "bundle", "memory"}
    else:
        assert "checkpoint, onnx in float32" in done.stdout
