"""The shared sender and the shared cancellation check: no request is forgotten, and none is checked after its end."""

import threading
import time

from videollama_server.answers.caller_watch import CallerWatch
from videollama_server.answers.outbox import Outbox


class Sender:
    """Yields its numbers in turn; the first send takes until `until` is set."""

    def __init__(self, outbox, until=None) -> None:
        self.outbox, self.until, self.sent, self.waiting = outbox, until, [], []
        self.lock = threading.Lock()

    def say(self, number) -> None:
        with self.lock:
            is_news = not self.waiting
            self.waiting.append(number)
        if is_news:
            self.outbox.put(self)

    def flush(self) -> None:
        with self.lock:
            now, self.waiting = self.waiting, []
        if self.until is not None:
            assert self.until.wait(30)
        if now == ["broken"]:
            raise OSError("nobody listens")
        self.sent.append(now)


def test_messages_queued_during_a_send_go_out_together_and_none_is_lost():
    outbox, opened = Outbox("test"), threading.Event()
    slow, other = Sender(outbox, opened), Sender(outbox)
    slow.say(0)
    while slow.waiting:  # it is being sent
        time.sleep(0.001)
    for number in range(1, 5):
        slow.say(number)
        other.say(number)
    opened.set()
    outbox.close()
    assert slow.sent == [[0], [1, 2, 3, 4]] and other.sent == [[1, 2, 3, 4]]


def test_a_failed_send_does_not_stop_the_others():
    outbox, opened = Outbox("test"), threading.Event()
    first, broken, last = Sender(outbox, opened), Sender(outbox), Sender(outbox)
    for sender, word in ((first, "a"), (broken, "broken"), (last, "b")):
        sender.say(word)
    opened.set()
    outbox.close()
    assert (first.sent, broken.sent, last.sent) == ([["a"]], [], [["b"]])


def test_nothing_is_lost_across_many_threads():
    outbox = Outbox("test")
    senders = [Sender(outbox) for _ in range(4)]

    def speak(sender) -> None:
        for number in range(2000):
            sender.say(number)

    threads = [threading.Thread(target=speak, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.close()
    for sender in senders:
        assert [number for sent in sender.sent for number in sent] == list(range(2000))


class Request:
    def __init__(self, fails=False) -> None:
        self.ended, self.checks, self.fails, self.seen = False, 0, fails, threading.Event()

    def check_caller(self) -> None:
        assert not self.ended
        self.checks += 1
        if self.checks >= 3:
            self.seen.set()
        if self.fails:
            raise RuntimeError("the server is gone")


def test_every_request_is_checked_until_it_ends():
    running = []
    watch = CallerWatch(0.001, lambda: running.append(None))
    requests = [Request(), Request(fails=True), Request()]
    for request in requests:
        watch.add(request)
    assert all(request.seen.wait(30) for request in requests)
    for request in requests:
        request.ended = True
    watch.wake()
    while True:  # a round after the last has ended
        rounds = len(running)
        time.sleep(0.05)
        if len(running) == rounds > 0:
            break
    checks = [request.checks for request in requests]
    watch.add(later := Request())
    assert later.seen.wait(30) and [request.checks for request in requests] == checks
    watch.close()
    assert len(running) > rounds
