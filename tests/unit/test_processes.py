"""The supervisor reads /proc, where other programs may have any name."""

import errno
import os
import subprocess
import sys

import pytest

from security.soak import wait_for
from videollama_server.machine import with_parent
from videollama_server.processes import is_alive, stage_of, stage_processes, wait_for_an_end, with_descendants, work_of


def write_process(proc, pid: int, name: bytes, parent: int, command: bytes, state: bytes = b"S") -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_bytes(b"%d (%s) %s %d 1 1" % (pid, name, state, parent))
    (folder / "cmdline").write_bytes(command)


def test_stages_of_one_server(tmp_path):
    stub = b"triton_python_backend_stub\0/bundle/model_repository/%s/1/model.py\0"
    write_process(tmp_path, 11, b"stub", 7, stub % b"encoder")
    write_process(tmp_path, 12, b"stub", 7, stub % b"preprocess", state=b"Z")
    write_process(tmp_path, 13, b"stub", 8, stub % b"encoder")
    write_process(tmp_path, 14, b"sh", 7, b"sh\0-c\0true\0")
    assert stage_processes(7, tmp_path) == {11: "encoder"}


def test_a_foreign_process_with_any_bytes_in_its_name_is_skipped(tmp_path):
    """A program whose name is not UTF-8 ended the supervisor's thread, so dead stages were not restarted."""
    write_process(tmp_path, 10, b"\xff) S 7 (\xfe", 1, b"\xff\xfe\0")
    write_process(tmp_path, 11, b"stub", 7, b"stub\0/\xff/encoder/1/model.py\0")
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "stat").write_bytes(b"")
    assert stage_processes(7, tmp_path) == {11: "encoder"}


def test_one_process(tmp_path):
    write_process(tmp_path, 11, b"stub", 7, b"stub\0/b/encoder/1/model.py\0")
    write_process(tmp_path, 12, b"stub", 7, b"stub\0/b/encoder/1/model.py\0", state=b"Z")
    assert stage_of(11, tmp_path) == "encoder" and is_alive(11, tmp_path)
    assert stage_of(12, tmp_path) is None and not is_alive(12, tmp_path)
    assert stage_of(13, tmp_path) is None and not is_alive(13, tmp_path)


def test_processes_and_what_they_started(tmp_path):
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 1), (14, 99)):
        write_process(tmp_path, pid, b"x", parent, b"")
    assert with_descendants([10], tmp_path) == {10, 11, 12}
    assert with_descendants([11, 13], tmp_path) == {11, 12, 13}


@pytest.mark.parametrize(
    ("io", "read"),
    [
        (b"rchar: 30000000\nwchar: 1\nsyscr: 2\nsyscw: 3\nread_bytes: 0\n", 3),
        (b"rchar: 1\nwchar: 1\nsyscr: 2\nsyscw: 3\nread_bytes: 50000000\n", 5),  # weights that are mapped
        (None, 0),  # a kernel that does not count it
    ],
)
def test_work_is_cpu_time_and_bytes_read(io, read, tmp_path):
    write_process(tmp_path, 10, b"a b) c", 1, b"")
    ticks = os.sysconf("SC_CLK_TCK")
    words = b" ".join(b"%d" % value for value in (*range(1, 11), 3 * ticks, 4 * ticks))
    (tmp_path / "10" / "stat").write_bytes(b"10 (a b) c) S " + words)
    if io is not None:
        (tmp_path / "10" / "io").write_bytes(io)
    assert work_of([10, 11], tmp_path) == {10: pytest.approx(7 + read, abs=1e-5)}


def test_the_end_of_a_process_is_noticed_even_without_waiting_for_it():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as first:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as second:
            pids = [first.pid, second.pid]
            assert not wait_for_an_end(pids, 0.01)
            second.kill()
            assert wait_for_an_end(pids, 60) and not is_alive(second.pid) and is_alive(first.pid)
        assert wait_for_an_end(pids, 60)  # gone
        first.kill()


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_without_pidfd_support_the_caller_polls(error, monkeypatch):
    def refuse(pid):
        raise OSError(error, "refused")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert wait_for_an_end([os.getpid()], 60)


def test_a_program_is_signalled_when_its_parent_ends(tmp_path):
    """However the parent ended; it does not start where the parent is already gone."""
    told, begun = tmp_path / "told", tmp_path / "begun"
    child = f"trap 'touch {told}; exit' TERM; touch {begun}; while :; do sleep 0.05; done"
    parent = (
        "import subprocess, sys, time; from videollama_server.machine import with_parent; "
        f'subprocess.Popen(with_parent.command(["sh", "-c", {child!r}])); time.sleep(60)'
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        assert wait_for(begun.exists)
        process.kill()
    assert wait_for(told.exists)
    gone = [*with_parent.command([])[:-1], str(process.pid), "touch", str(tmp_path / "late")]
    subprocess.run(gone, check=True)
    assert not (tmp_path / "late").exists()
