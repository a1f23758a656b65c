"""Decoding in a sandbox: the same pixels, nothing else accessible, and a hostile file affects only its own process."""

import ctypes
import fcntl
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import MEDIA
from security.measured import measured
from security.media_cases import clip, encoded
from security.soak import name_of
from videollama_core.checkpoint.read_config import published_config
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.protocol import limits
from videollama_core.protocol.errors import BadSegment, Cancelled, StageDied, StageFailed, UnreadableMedia
from videollama_server.processes import is_alive
from videollama_server.sandbox import confinement, message
from videollama_server.sandbox.confinement import processor_seconds
from videollama_server.sandbox.decoder import ConfinedDecoder
from videollama_server.sandbox.decoding import WAITING, WORKING
from videollama_server.sandbox.syscalls import build_filter

CONFIG = published_config("VideoLLaMA2.1-7B-AV")
CONFINED = set(confinement.examine().values()) == {"in force"}
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
KINDS = {
    "video": "sample_demo_1.mp4",
    "video_with_audio": "sample_demo_3.mp4",
    "audio": "stereo_44k1_2s.wav",
    "image": "sora.png",
}


@pytest.fixture(scope="module")
def decoder():
    started = ConfinedDecoder(CONFIG)
    yield started
    started.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_sandbox_returns_the_same_pixels(kind, decoder):
    data = (MEDIA / KINDS[kind]).read_bytes()
    inside, outside = decoder.prepare(kind, [data], Segment()), prepare(kind, [data], Segment(), CONFIG)
    for name in ("frames", "filterbank", "index", "time"):
        assert np.array_equal(getattr(inside, name), getattr(outside, name), equal_nan=name == "time"), name


def test_a_picture_that_pillow_converts_with_another_module_is_read(decoder):
    data = encoded((20, 10), "TIFF", "LAB")
    inside, outside = decoder.prepare("image", [data], Segment()), prepare("image", [data], Segment(), CONFIG)
    assert np.array_equal(inside.frames, outside.frames)


def test_media_errors_leave_the_sandbox_unchanged(decoder):
    with pytest.raises(UnreadableMedia, match="not a video"):
        decoder.prepare("video", [b"text"], Segment())
    with pytest.raises(BadSegment, match="no frame lies between"):
        decoder.prepare("video", [clip()], Segment(90.0, 91.0))


# --- what cannot be done in it ---------------------------------------------------------------------------------------


def confined(work):
    """The result of `work` in a process that has entered the sandbox."""

    def run():
        confinement.enter()
        return work()

    return measured(run)


FORBIDDEN = {
    "open a file": lambda: Path("/etc/passwd").read_bytes(),
    "write a file": lambda: Path("/tmp/vl2-confined").write_bytes(b"x"),
    "list a folder": lambda: os.listdir("/"),
    "remove a file": lambda: os.unlink("/tmp/vl2-confined"),
    "start a program": lambda: os.execv("/bin/true", ["true"]),
    "start a process": lambda: ctypes_call(
        "syscall", CLONE, signal.SIGCHLD, 0, 0, 0, 0
    ),  # os.fork asks libraries first
    "make a socket": socket.socket,
    "signal another process": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "look into another process": lambda: ctypes_call("ptrace", 16, os.getppid(), 0, 0),
    "have another process signalled": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
    "raise its limits": lambda: resource.setrlimit(resource.RLIMIT_DATA, resource.getrlimit(resource.RLIMIT_DATA)),
}


CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), -1)


def ctypes_call(name: str, *arguments: int) -> int:
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


@pytest.mark.skipif(not CONFINED, reason="this kernel has no Landlock or seccomp")
@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_else_is_accessible(what):
    result = confined(FORBIDDEN[what])
    assert result.answer in ("PermissionError", "OSError", "ValueError"), result


@pytest.mark.skipif(not CONFINED, reason="this kernel has no Landlock or seccomp")
@pytest.mark.parametrize("part", confinement.PARTS)
def test_each_layer_alone_blocks_file_access(part):
    def run():
        confinement.enter((part,))
        return Path("/etc/passwd").read_bytes()

    assert measured(run).answer == "PermissionError"


def test_the_filter_of_the_other_architecture_is_as_long_and_different():
    filters = {build_filter(1, machine) for machine in ("x86_64", "aarch64")}
    assert len(filters) == 2 and len({len(program) for program in filters}) == 1
    assert build_filter(1, "riscv64") is None


# --- limits, and the end of a process ----------------------------------------------------------------------------------


def hostile(monkeypatch, tmp_path, body: str, setup: str = "") -> ConfinedDecoder:
    """A decoder whose `prepare` is this code: what a file that has taken over the process may do."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'videollama_server.sandbox.spawner' in ' '.join(sys.orig_argv):\n"
        "    import videollama_core.media.preprocess as preprocess\n"
        f"    def prepare(*_):\n        {body}\n"
        f"    preprocess.prepare = prepare\n    {setup or 'pass'}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return ConfinedDecoder(CONFIG)


ENDS = {
    "a crash": ("import ctypes; ctypes.string_at(0)", r"\(SIGSEGV\).*re-encode"),
    "abort": ("import os; os.abort()", r"\(SIGABRT\)"),
    "memory": ("return [bytearray(2**20) for _ in range(5000)]", "more than 1024 MiB.*decode_memory"),
    "an endless loop": ("while True: pass", "picture_seconds"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_file_ends_only_its_own_process(name, monkeypatch, tmp_path):
    body, message = ENDS[name]
    if "loop" in name:
        monkeypatch.setattr(limits, "PICTURE_SECONDS", replace(limits.PICTURE_SECONDS, value=1))
    decoder = hostile(monkeypatch, tmp_path, body)
    try:
        first = decoder._process.pid
        with pytest.raises(UnreadableMedia, match=message):
            decoder.prepare("image", [b"x"], Segment())
        assert decoder._process.pid == first and decoder._process.poll() is None
    finally:
        decoder.close()


@pytest.mark.parametrize("kind", ["m.MAP_SHARED", "m.MAP_PRIVATE | 0x100"])  # MAP_GROWSDOWN
def test_memory_other_than_data_has_a_limit(kind, monkeypatch, tmp_path):
    body = f"import mmap as m; m.mmap(-1, 8 * 2**30, flags=m.MAP_ANONYMOUS | {kind})"
    decoder = hostile(monkeypatch, tmp_path, body)
    try:
        with pytest.raises(StageFailed, match="Cannot allocate memory"):
            decoder.prepare("image", [b"x"], Segment())
    finally:
        decoder.close()


def test_a_process_that_closes_its_socket_and_runs_on_is_killed(monkeypatch, tmp_path):
    decoder = hostile(monkeypatch, tmp_path, "import os, time; os.closerange(3, 100); time.sleep(60)")
    try:
        began = time.monotonic()
        with pytest.raises(StageDied):
            decoder.prepare("image", [b"x"], Segment())
        assert time.monotonic() - began < 10
    finally:
        decoder.close()


def test_a_process_killed_while_it_waits_is_replaced(decoder):
    decoder.prepare("video", [clip()], Segment())
    for _ in range(3):
        waiting = _waiting(decoder)
        os.kill(waiting, signal.SIGKILL)
        while is_alive(waiting):
            time.sleep(0.01)
        assert decoder.prepare("video", [clip()], Segment()).frames.size
        assert _waiting(decoder) != waiting


def _waiting(decoder) -> int:
    """The process that waits for the next request; it is forked shortly after the last answer."""
    spawner, deadline = decoder._process.pid, time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in map(int, Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()):
            if name_of(pid) == WAITING:
                return pid
        time.sleep(0.01)
    raise AssertionError("no process waits")


LIES = {
    "nothing": b"",
    "a head of 2^60 bytes": (2**60).to_bytes(8, "little"),
    "no JSON": b"\x04\0\0\0\0\0\0\0{{{{",
    "deep JSON": (90_000).to_bytes(8, "little") + b"[" * 90_000,
    "a list": b"\x02\0\0\0\0\0\0\0[]",
    "no shapes": b"\x02\0\0\0\0\0\0\0{}",
    "shapes without bytes": b'\x40\0\0\0\0\0\0\0{"shapes": [[9999999, 99999, 99], [1, 1], [1], [1]]}'.ljust(72),
    "negative shapes": b'\x30\0\0\0\0\0\0\0{"shapes": [[-1, -3], [1, 1], [1], [1]]}'.ljust(90),
    "words for shapes": b'\x30\0\0\0\0\0\0\0{"shapes": [["a"], [1, 1], [1], [1]]}'.ljust(90),
}


@pytest.mark.parametrize("name", LIES)
def test_the_processs_messages_are_not_trusted(name):
    memory = os.memfd_create("lie")
    os.write(memory, LIES[name])
    with pytest.raises(StageFailed, match="gave an invalid answer"):
        message.read_answer(memory)
    os.close(memory)


@pytest.fixture
def endless(monkeypatch, tmp_path):
    decoder = hostile(monkeypatch, tmp_path, "while True: pass")
    yield decoder
    decoder.close()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_caller_that_leaves_frees_the_place(endless):
    began = time.monotonic()
    with pytest.raises(Cancelled):
        endless.prepare("image", [b"x"], Segment(), lambda: time.monotonic() < began + 0.5)
    assert time.monotonic() - began < 0.5 + 5  # the work has no end; a busy machine takes its time to notice
    assert WORKING not in map(name_of, children(endless._process.pid))


def test_the_time_limit_is_cpu_time_and_not_wall_time():
    """A sleeping process uses none, a working one does: slowness caused by others is not refused."""
    busy, idle = (
        subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
        for work in ("while True: pass", "input()")
    )
    try:
        deadline = time.monotonic() + 30
        while processor_seconds(busy.pid) < 0.5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processor_seconds(busy.pid) >= 0.5 > processor_seconds(idle.pid)
    finally:
        for process in (busy, idle):
            process.kill()
            process.communicate()


def test_decoding_ends_with_the_stage(endless):
    """The preprocess stage may be killed at any time: no decoding process outlives it."""
    process = endless._process.pid
    with pytest.raises(StageDied):
        endless.prepare("image", [b"x"], Segment(), lambda: os.kill(process, signal.SIGKILL) or True)
    assert endless._process.pid != process  # it was started again
