"""Whether a media question would be answered, looked at twice a second and told to the endpoint."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from videollama_core.protocol import contract
from videollama_core.protocol.errors import ServerFailed
from videollama_server.endpoint.process import EndpointProcess, Heard
from videollama_server.endpoint.state import Told
from videollama_server.processes import is_alive, is_stopped

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_POLL_SECONDS = 0.05
_NEEDED = (contract.ENTRY.name, contract.PREPROCESS.name, contract.ENCODER.name, contract.LANGUAGE_MODEL.name)


def why_not_ready(server_pid: int, stages: Mapping[int, str]) -> str:
    """Why no media question would be answered; "" when one would.

    Args:
        stages: process id -> stage, as the server was when it was whole.
    """
    for pid, stage in ((server_pid, "tritonserver"), *stages.items()):
        if stage in _NEEDED or pid == server_pid:
            if not is_alive(pid):
                return f"the process of {stage} is being started again"
            if is_stopped(pid):
                return f"the process of {stage} is stopped"
    return ""


class EndpointKeeper:
    """Keeps an endpoint running, and tells it how the server is.

    Args:
        look: what it is to be told.
    """

    def __init__(self, endpoint: EndpointProcess, look: Callable[[], Told]) -> None:
        self._endpoint, self._look = endpoint, look
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)

    def start(self) -> None:
        """Raises: ServerFailed with the endpoint's own reason."""
        self._endpoint.launch(self._look())
        self._thread.start()

    def tell(self) -> Heard:
        """Raises: OSError when the endpoint does not answer."""
        with self._lock:
            return self._endpoint.tell(self._look())

    def wait_until_ready(self, seconds: float, triton_runs: Callable[[], bool]) -> None:
        """Until the endpoint has found Triton, too, or Triton has ended. Raises: ServerFailed if it does not find it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not triton_runs():
                return  # who waits for its end starts it again
            with suppress(OSError):  # it is started again
                if self.tell().ready:
                    return
            time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"the endpoint was not ready {seconds:g} s after Triton")

    def reload_keys(self) -> None:
        self._endpoint.reload_keys()

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                self.tell()
            except OSError as error:
                if self._closing.is_set():
                    return
                logger.warning("%s; starting it again", error)
                self._start_again()

    def _start_again(self) -> None:
        with self._lock:
            self._endpoint.end()
            try:
                self._endpoint.launch(self._look())
            except ServerFailed as error:
                logger.error("%s", error)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._endpoint.end()
