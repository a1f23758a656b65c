"""A small or hostile machine: limits, proxies, foreign processes, kills; what a server reports, and what it leaves behind."""

import itertools
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import MEDIA
from security.soak import Footprint, all_dead, members, run_name, wait_for
from service.servers import Server, children, serving, start, stop, vl2
from videollama_client import Client, Overloaded
from videollama_server import supervisor
from videollama_server.processes import threads_of
from videollama_server.supervisor import ServerOptions, TritonServer

AREA = "machine"
VARIANT = "qwen2-clip-8f"
PORTS = ("--grpc-port", 0)
SHARED = Path("/dev/shm")


def left_of(name: str) -> list[Path]:
    """The files and shared memory that a server's run keeps outside its own memory."""
    return [*SHARED.glob(f"{name}*"), *Path(tempfile.gettempdir()).glob(f"{name}*")]


def in_namespace(*mounts: str, command: list[str]) -> list[str]:
    """Wraps the command so that these mounts apply to it alone."""
    return ["unshare", "-m", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh", *command]


@pytest.fixture
def namespaces():
    if subprocess.run(in_namespace("true", command=["true"]), capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount (root)")


# --- the environment ---


def test_proxies_of_the_environment_are_not_used(bundle_of, tmp_path, monkeypatch, case_table):
    """The supervisor asked the proxy whether its own server was ready, and the entry asked it for the language model."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    # A neighbour whose name and command line are not UTF-8 once stopped the supervisor as well.
    neighbour = tmp_path / os.fsdecode(b"\xff\xfe")
    neighbour.symlink_to("/bin/sleep")
    foreign = subprocess.Popen([neighbour, "600"])
    try:
        began = time.monotonic()
        with serving(bundle_of(VARIANT), tmp_path / "log") as server, server.client() as client:
            assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
            case_table.add("`http_proxy`, `grpc_proxy`, ... name a proxy", "answered", time.monotonic() - began)
            os.kill(server.pids("encoder")[0], signal.SIGKILL)
            killed = time.monotonic()
            image = MEDIA / "image_90x50.png"
            assert client.ask("What?", image=image, max_new_tokens=2).usage.completion_tokens == 2
            case_table.add(
                "stage killed beside a process whose name is not UTF-8", "answered", time.monotonic() - killed
            )
            assert (tmp_path / "log").stat().st_mode & 0o077 == 0
    finally:
        foreign.kill()
        foreign.wait()


def test_too_few_open_files_are_reported(bundle_of, case_table):
    began = time.monotonic()
    command = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", *vl2("serve", bundle_of(VARIANT), *PORTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") <= 2, done.stderr
    assert "ServerFailed: open files: at most 64 at a time; a server needs 1024; raise it: ulimit" in done.stderr
    case_table.add("`ulimit -n 64`", "ServerFailed, with what to do", time.monotonic() - began)


def test_a_machine_with_noexec_temporary_folders_is_reported(namespaces, bundle_of, tmp_path, case_table):
    """Our own compose file mounted /tmp that way: Triton's stub could not be started, and nothing reported it."""
    mounts = [f"mount -t tmpfs -o noexec,size=64m none {folder}" for folder in (tmp_path, "/var/tmp")]
    began = time.monotonic()
    command = in_namespace(*mounts, command=["env", f"TMPDIR={tmp_path}", *vl2("serve", bundle_of(VARIANT), *PORTS)])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and f"ServerFailed: run folder: {tmp_path} is mounted noexec" in done.stderr
    assert "set TMPDIR" in done.stderr
    case_table.add("TMPDIR and /var/tmp mounted noexec", "ServerFailed, with what to do", time.monotonic() - began)


def test_a_machine_as_small_as_dockers_default(namespaces, bundle_of, tmp_path, case_table):
    """64 MiB of shared memory: told at the start; a medium that does not fit is refused in our words, and the next one that does is
    answered. TMPDIR is noexec: the stub runs from /var/tmp."""
    mount, folder = "mount -t tmpfs -o size=64m none /dev/shm", tmp_path / "noexec"
    folder.mkdir()
    mounts = (mount, f"mount -t tmpfs -o noexec,size=64m none {folder}")
    command = ["env", f"TMPDIR={folder}", *vl2("serve", bundle_of(VARIANT), *PORTS, "--log", tmp_path / "log")]
    began = time.monotonic()
    process = subprocess.Popen(
        in_namespace(*mounts, command=command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = itertools.takewhile(lambda line: not line.startswith("ready"), process.stdout)
    addresses = {key: value.strip() for key, _, value in (line.partition(" ") for line in told)}
    server = Server(process, addresses["gRPC"], "", "", tmp_path / "log", 0)
    try:
        case_table.add("TMPDIR mounted noexec", "serves, from /var/tmp", time.monotonic() - began)
        with server.client() as client:
            began = time.monotonic()
            large = (MEDIA / "plain_96x64.mp4").read_bytes() + bytes(40 * 2**20)
            with pytest.raises(Overloaded, match="too little shared memory.*vl2 doctor"):
                client.ask("What?", video=large, max_new_tokens=2, timeout=30)
            case_table.add("40 MiB of video, /dev/shm of 64 MiB", "Overloaded", time.monotonic() - began)
            small = client.ask("What?", video=MEDIA / "plain_96x64.mp4", max_new_tokens=2, timeout=30)
            assert small.usage.completion_tokens == 2
    finally:
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=60)[1]
    assert "shared memory: 64 MiB free in /dev/shm; media above 10 MiB will be refused; give it 1568 MiB" in stderr
    doctor = in_namespace(mount, command=vl2("doctor", "--port", 0))
    told = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False)
    assert "64 MiB free in /dev/shm" in told.stdout and "docker: --shm-size 2g" in told.stdout
    case_table.add("/dev/shm of 64 MiB", "told at the start and by vl2 doctor, with the size needed", 0)


# --- the end ---


def test_a_triton_with_many_dead_stages_is_restarted(endless, tmp_path, monkeypatch, case_table):
    """Each restart of a decoupled stage leaks its threads; 30 restarts raised 1,170 threads to 2,960."""
    options = ServerOptions(grpc_port=0, log=tmp_path / "log")
    with TritonServer(endless, options) as server, Client(server.address) as client:
        (triton,) = children(os.getpid(), "tritonserver")
        assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
        fresh = threads_of(triton)
        assert fresh < supervisor.WORN_THREADS / 2
        monkeypatch.setattr(supervisor, "WORN_THREADS", fresh + 100)
        (entry,) = children(triton, "/videollama2/1/model.py")
        next(iter(client.stream("Tell a long story", max_new_tokens=20000)))
        os.kill(entry, signal.SIGKILL)
        began = time.monotonic()
        assert wait_for(lambda: not server.is_running(), 60)
        assert server.is_renewed
        server.restart()
        (anew,) = children(os.getpid(), "tritonserver")
        assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
        case_table.add(
            "stages killed until Triton holds 2,800 threads", "started anew, in order", time.monotonic() - began
        )
        assert anew != triton and threads_of(anew) <= fresh + 10


def test_running_ensemble_answers_finish_too(endless, tmp_path, case_table):
    """SIGTERM cut off every running `ensemble` answer: only the entry's were waited for."""
    server = start(endless, tmp_path / "log", "--expose-ensemble")
    group, name = members(server.triton), run_name(server.triton)
    assert left_of(name)
    answers: list = []

    asked: dict[str, np.ndarray] = {
        "question": np.array([b"Tell a long story"], np.object_),
        "media": np.array([(MEDIA / "image_90x50.png").read_bytes()], np.object_),
        "media_kind": np.array([b"image"], np.object_),
        "max_new_tokens": np.array([2000], np.int32),
    }

    def ask() -> None:
        try:
            response = server.call("ensemble", ["text"], **asked)
            answers.append(response["text"])
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()

    def all_begun() -> bool:
        running = server.metric("vl2_num_requests_running")
        return running > 0 and running + len(answers) >= 6

    assert wait_for(all_begun)
    began = time.monotonic()
    assert stop(server) == 0
    for thread in threads:
        thread.join(30)
    assert len(answers) == 6 and not [answer for answer in answers if isinstance(answer, Exception)], answers
    case_table.add("SIGTERM with 6 running answers of `ensemble`", "all answered", time.monotonic() - began)
    assert all_dead(group) and not left_of(name)
    case_table.add("SIGTERM", "no process, shared memory or folder is left", 0)


def test_a_server_leaves_nothing_behind(bundle_of, tmp_path, case_table):
    """Each crash of Triton leaked its shared memory, an orderly stop 9 to 11 files, a killed `vl2 serve` its stubs."""
    server = start(bundle_of(VARIANT), tmp_path / "log")
    name = run_name(server.triton)
    with server.client() as client:
        client.ask("What?", video=(MEDIA / "plain_96x64.mp4").read_bytes() + bytes(30 * 2**20), max_new_tokens=2)
        full = Footprint.of(server)
        os.kill(server.triton, signal.SIGKILL)
        assert client.ask("Again?", max_new_tokens=2).usage.completion_tokens == 2
    assert full.shared_bytes > 60 * 2**20 > 3 * Footprint.of(server).shared_bytes
    case_table.add("Triton killed, after media of 30 MiB", "its shared memory is gone", 0)
    (triton,) = children(server.process.pid, "tritonserver")
    group = members(triton)
    assert len(group) > 6 and run_name(triton) == name and left_of(name)
    server.process.kill()
    server.process.communicate(timeout=10)
    began = time.monotonic()
    assert wait_for(lambda: all_dead(group) and not left_of(name)), (group, left_of(name))
    case_table.add("`vl2 serve` killed", "no process, shared memory or folder is left", time.monotonic() - began)
