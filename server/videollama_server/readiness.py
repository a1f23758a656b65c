"""Whether a media question would be answered: checked twice a second and reported to the endpoint."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from videollama_core.protocol import contract
from videollama_core.protocol.errors import ServerFailed
from videollama_server.endpoint.process import EndpointProcess, EndpointStatus
from videollama_server.endpoint.state import SupervisorStatus
from videollama_server.processes import is_alive, is_stopped

logger = logging.getLogger(__name__)
_CHECK_SECONDS = 0.5
_POLL_SECONDS = 0.05
_NEEDED = (contract.ENTRY.name, contract.PREPROCESS.name, contract.ENCODER.name, contract.LANGUAGE_MODEL.name)


def why_not_ready(server_pid: int, stages: Mapping[int, str]) -> str:
    """Return why a media question would not be answered; "" if it would be.

    Args:
        stages: process id -> stage, taken when the server was complete.
    """
    for pid, stage in ((server_pid, "tritonserver"), *stages.items()):
        if stage in _NEEDED or pid == server_pid:
            if not is_alive(pid):
                return f"the process of {stage} is being restarted"
            if is_stopped(pid):
                return f"the process of {stage} is stopped"
    return ""


class EndpointKeeper:
    """Keeps an endpoint running, and reports the server's status to it.

    Args:
        status: returns the status to report.
    """

    def __init__(self, endpoint: EndpointProcess, status: Callable[[], SupervisorStatus]) -> None:
        self._endpoint, self._status = endpoint, status
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)

    def start(self) -> None:
        """Start the endpoint and the reports. Raises: ServerFailed with the endpoint's own reason."""
        self._endpoint.launch(self._status())
        self._thread.start()

    def exchange(self) -> EndpointStatus:
        """Report the status; return the endpoint's answer. Raises: OSError if the endpoint does not answer."""
        with self._lock:
            return self._endpoint.exchange(self._status())

    def wait_until_ready(self, seconds: float, triton_runs: Callable[[], bool]) -> None:
        """Wait until the endpoint reports ready, or Triton has ended. Raises: ServerFailed after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not triton_runs():
                return  # the caller, which watches Triton, restarts it
            with suppress(OSError):  # `_run` restarts the endpoint
                if self.exchange().ready:
                    return
            time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"the endpoint was not ready {seconds:g} s after Triton")

    def reload_keys(self) -> None:
        self._endpoint.reload_keys()

    def _run(self) -> None:
        while not self._closing.wait(_CHECK_SECONDS):
            try:
                self.exchange()
            except OSError as error:
                if self._closing.is_set():
                    return
                logger.warning("%s; restarting it", error)
                self._restart()

    def _restart(self) -> None:
        with self._lock:
            self._endpoint.end()
            try:
                self._endpoint.launch(self._status())
            except ServerFailed as error:
                logger.error("%s", error)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._endpoint.end()
