"""What the machine offers a server, and what a server leaves behind on it."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from videollama_core.engines.machine_checks import FAIL, OK, WARN
from videollama_core.protocol.errors import ServerFailed
from videollama_core.telemetry.logs import LogFormatter
from videollama_server.installation import Installation, stage_environment
from videollama_server.machine import checks, runtime, watcher
from videollama_server.machine.log import rotate
from videollama_server.machine.runtime import Runtime, remove_left_behind

MIB = 2**20


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder in place of /dev/shm, with runtime folders beside it."""
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


def test_a_server_removes_its_own_shared_memory(shared):
    mine, other = Runtime(shared), Runtime(shared)
    for one in (mine, other):
        (shared / f"{one.prefix}region").touch()
    mine.remove_shared_memory()
    assert not (shared / f"{mine.prefix}region").exists() and mine.folder.is_dir()
    mine.remove()
    mine.remove()
    assert not mine.folder.exists()
    assert {path.name for path in shared.iterdir()} == {f"{other.prefix}region", f"{other.folder.name}.lock"}
    other.remove()
    assert not list(shared.iterdir())


def test_the_next_server_cleans_up_after_a_killed_one_and_touches_nothing_else(shared, tmp_path):
    """409 MB of shared memory leaked at each crash; names alone do not tell whether a server still runs."""
    killed, running = Runtime(shared), Runtime(shared)
    (shared / f"{killed.prefix}region").touch()
    (shared / f"{running.prefix}region").touch()
    child = subprocess.Popen(["sleep", "60"], pass_fds=(running.lock,))  # a stub that outlives its server
    os.close(killed.lock)
    os.close(running.lock)
    try:
        remove_left_behind(shared)
        assert not killed.folder.exists() and not (shared / f"{killed.prefix}region").exists()
        assert running.folder.exists() and (shared / f"{running.prefix}region").exists()
    finally:
        child.kill()
        child.wait()
    remove_left_behind(shared)
    assert not running.folder.exists() and not list(shared.iterdir())


def test_a_lock_file_that_names_a_foreign_folder_removes_nothing(shared, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (shared / "vl2-serve-evil.lock").write_text(f"{victim}\n{victim}\n/\n")
    remove_left_behind(shared)
    assert victim.is_dir() and not list(shared.iterdir())


@pytest.mark.parametrize("orderly", [True, False])
def test_the_watcher_ends_the_processes_of_a_killed_serve(orderly, shared):
    """Stubs ignore SIGTERM and outlived a killed `vl2 serve`."""
    mine = Runtime(shared)
    stub = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", stub], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    (shared / f"{mine.prefix}region").touch()
    command = [sys.executable, "-I", watcher.__file__, str(child.pid), str(mine.lock_path), "0.5"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        if not orderly:
            child.send_signal(signal.SIGSTOP)  # Triton does not end by itself either
        process.communicate(b"ended" if orderly else None, timeout=30)
        assert (child.poll() is None) == orderly == mine.folder.is_dir() == (shared / f"{mine.prefix}region").exists()
        if not orderly:
            assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()
        mine.remove()


def test_a_noexec_tmpdir_is_avoided_or_reported(shared, tmp_path, monkeypatch):
    """With TMPDIR on a noexec tmpfs the server did not start, and gave no reason."""
    monkeypatch.setattr(runtime, "allows_programs", lambda folder: folder != tmp_path)
    assert runtime.program_folder() == Path("/var/tmp")
    assert checks.programs().state == OK
    monkeypatch.setattr(runtime, "allows_programs", lambda folder: False)
    with pytest.raises(ServerFailed, match=rf"^{tmp_path} is mounted noexec.*docker: --tmpfs /tmp:exec.*TMPDIR"):
        Runtime(shared)
    assert checks.programs().state == FAIL
    Runtime(shared, executable=False).remove()


Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize(
    ("free", "state", "told"), [(16, FAIL, "start"), (64, WARN, "media above 10 MiB"), (1568, OK, "")]
)
def test_too_little_shared_memory_is_reported_with_the_size_needed(free, state, told, monkeypatch):
    """With 64 MiB, Docker's default, media above 20 MB failed with Triton's own message, and nothing warned before."""
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(free * MIB))
    finding = checks.shared_memory()
    assert finding.state == state and told in finding.advice and (state == OK or "1568 MiB" in finding.advice)


def test_too_few_open_files_are_reported_in_one_line():
    """`ulimit -n 64` led to "not ready" after minutes."""
    check = "from videollama_server.machine.checks import check_machine; check_machine()"
    for soft, hard, expected in ((64, 64, "open files: at most 64 at a time; a server needs 1024"), (64, 4096, "")):
        code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); {check}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (expected in done.stderr) if expected else done.returncode == 0, done.stderr


def test_a_cgroup_with_few_threads_is_reported(tmp_path):
    (tmp_path / "pids.max").write_text("1024\n")
    assert checks.threads(tmp_path).state == FAIL and "--pids-limit 4096" in checks.threads(tmp_path).advice
    (tmp_path / "pids.max").write_text("2048\n")
    assert checks.threads(tmp_path).state == WARN
    (tmp_path / "pids.max").write_text("max\n")
    assert checks.threads(tmp_path).state == OK


def test_no_proxy_reaches_the_stages(monkeypatch):
    """With http_proxy set, the entry asked the proxy for the server's own port, and the server never became ready."""
    for name in ("http_proxy", "HTTPS_PROXY", "grpc_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    environment = stage_environment(Installation(Path("t"), Path("b")), "127.0.0.1:1")
    assert not [name for name in environment if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]


def test_no_log_line_can_be_forged():
    form = LogFormatter("%(levelname)s %(message)s")
    try:
        raise ValueError("a\nERROR forged\r\x1b[2J")
    except ValueError:
        record = logging.LogRecord("n", logging.INFO, "f", 1, "id %s", ("x\nERROR forged\x00\u2028",), sys.exc_info())
    lines = form.format(record).split("\n")
    assert lines[0] == "INFO id x" and all(line.startswith("    ") for line in lines[1:])
    assert "forged\\x00\\u2028" in lines[1] and "\\r\\x1b[2J" in lines[-1]
    assert len(form.format(record).splitlines()) == len(lines)


def test_a_lock_is_held_by_every_process_that_inherits_it(shared):
    mine = Runtime(shared)
    with mine.lock_path.open() as again, pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert mine.lock_path.stat().st_mode & 0o777 == 0o600
    mine.remove()


def test_a_growing_log_is_rotated_while_it_is_written(tmp_path):
    """In a container it is kept in memory."""
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        rotate(log, most_bytes=100)
        assert not (tmp_path / "log.1").exists()
        writer.write(b"b")
        rotate(log, most_bytes=100)
        writer.write(b"c")
    assert (tmp_path / "log.1").read_bytes() == b"a" * 100 + b"b" and log.read_bytes() == b"c"
    assert (tmp_path / "log.1").stat().st_mode & 0o777 == 0o600
