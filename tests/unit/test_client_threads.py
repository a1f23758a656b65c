"""The synchronous client's threads are kept for later calls, up to a number, and not missed after a fork."""

import os
import queue
import threading
import time

from videollama_client.call import _IDLE_THREADS, _Threads

SECONDS = 30


def thread_of(threads):
    names = queue.SimpleQueue()
    threads.run(lambda: names.put(threading.current_thread()))
    return names.get(timeout=SECONDS)


def wait_for_idle(threads, count):
    deadline = time.monotonic() + SECONDS
    while len(threads._idle) != count:
        assert time.monotonic() < deadline, f"{len(threads._idle)} threads are idle"
        time.sleep(0.001)


def test_a_thread_reads_one_call_after_another():
    threads = _Threads()
    first = thread_of(threads)
    wait_for_idle(threads, 1)
    assert thread_of(threads) is first


def test_calls_at_once_have_a_thread_each_and_few_threads_stay():
    threads, go_on = _Threads(), threading.Event()
    begun = queue.SimpleQueue()

    def work():
        begun.put(threading.current_thread())
        go_on.wait(SECONDS)

    for _ in range(3 * _IDLE_THREADS):
        threads.run(work)
    running = {begun.get(timeout=SECONDS) for _ in range(3 * _IDLE_THREADS)}
    assert len(running) == 3 * _IDLE_THREADS
    go_on.set()
    wait_for_idle(threads, _IDLE_THREADS)
    deadline = time.monotonic() + SECONDS
    while sum(thread.is_alive() for thread in running) > _IDLE_THREADS and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sum(thread.is_alive() for thread in running) == _IDLE_THREADS


def test_a_child_process_starts_threads_of_its_own():
    threads = _Threads()
    thread_of(threads)
    wait_for_idle(threads, 1)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not threads._idle and thread_of(threads).is_alive() else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_system_without_forks_needs_no_hook(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")  # as on Windows
    assert thread_of(_Threads()).is_alive()
