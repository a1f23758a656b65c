"""A cancelled request takes its work with it: no other caller waits for media that nobody wants."""

import threading
import time

import pytest

from videollama_server.sandbox.callers import FOLDER_VARIABLE, Callers, is_waiting, who_waits


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "callers"))
    return tmp_path / "callers"


def test_a_note_lasts_as_long_as_its_caller_waits(folder):
    callers, left = Callers(), threading.Event()
    with callers.waiting(left.is_set) as name:
        assert is_waiting(name)
        left.set()
        deadline = time.monotonic() + 5
        while is_waiting(name) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_waiting(name)
    with callers.waiting(lambda: False) as name:
        pass
    assert not is_waiting(name) and not list(folder.iterdir())


def test_notes_of_a_dead_entry_are_removed_by_the_next_one(folder):
    folder.mkdir()
    (folder / ("0" * 32)).touch()
    Callers()
    assert not is_waiting("0" * 32)


@pytest.mark.parametrize("name", [None, "", "../../etc/passwd", "0" * 31, "x" * 32, "/" + "0" * 31])
def test_a_request_with_a_foreign_note_is_processed(name, folder):
    """It reveals nothing about the machine's files."""
    assert is_waiting(name)


def test_a_request_whose_note_cannot_be_written_is_processed(folder):
    """On a full disk every question about new media failed."""
    callers = Callers()
    folder.rmdir()
    with callers.waiting(lambda: False, "someone") as name:
        assert is_waiting(name) and not who_waits(name)


def test_without_a_folder_no_request_is_cancelled(monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with Callers().waiting(lambda: True) as name:
        assert name is None and is_waiting(name)
