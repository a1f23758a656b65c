"""A Triton that aborts while it starts is launched again."""

import signal
import sys
from types import SimpleNamespace

import pytest

from videollama_core.protocol.errors import ServerFailed
from videollama_server.process import _ATTEMPTS, TritonProcess


class Started(TritonProcess):
    """Whose processes end as they are told, and the last one is ready."""

    def __init__(self, ends: list[int]) -> None:
        self._ends, self.launched, self.ended = ends, 0, 0
        self._process = None

    def launch(self, command, environment) -> None:
        self._process = SimpleNamespace(poll=lambda code=self._ends[self.launched]: code, wait=lambda: None)
        self._process.wait = self._process.poll
        self.launched += 1

    def wait_until_ready(self, seconds) -> None:
        if self._process.poll() is not None:
            raise ServerFailed("it ended")

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    ("ends", "launched", "fails"),
    [
        ([None], 1, False),
        ([-signal.SIGABRT, None], 2, False),
        ([-signal.SIGABRT] * _ATTEMPTS, _ATTEMPTS, True),
        ([1], 1, True),  # a stage that does not load: again would be the same
        ([-signal.SIGKILL], 1, True),
    ],
)
def test_it_is_launched_again_where_it_aborted(ends, launched, fails):
    triton, began = Started(ends), []
    try:
        triton.start([sys.executable], {}, 1, lambda: began.append(True))
        assert not fails
    except ServerFailed:
        assert fails
    assert (triton.launched, triton.ended, len(began)) == (launched, launched - 1, 1)
