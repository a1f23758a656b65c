"""The supervisor's side of the endpoint process: start, status exchange and end."""

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from videollama_core.protocol.errors import ServerFailed
from videollama_server.endpoint.config import EndpointConfig
from videollama_server.endpoint.state import SupervisorStatus
from videollama_server.machine.log import open_log

_START_SECONDS = 30.0  # until the first status
_ANSWER_SECONDS = 3.0  # until a later one
_END_SECONDS = 3.0  # until the process has ended by itself
_WAITS = 2  # the answer timeout is split in two: after a suspend of the machine, the first wait expires at once


@dataclass(frozen=True)
class EndpointStatus:
    """The endpoint's status: the number of its active requests, and whether it reports the server as ready."""

    pending: int
    ready: bool


class EndpointProcess:
    """
    Args:
        folder: private to this run; the config is written into it.
    """

    def __init__(self, config: EndpointConfig, folder: Path, log: Path) -> None:
        self._path, self._log = folder / "endpoint.json", log
        self._process: subprocess.Popen[bytes] | None = None
        config.write(self._path)

    def launch(self, status: SupervisorStatus) -> None:
        """Start the process; return once it listens and has received `status`.

        Raises: ServerFailed, with the reason from its log.
        """
        environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with open_log(self._log) as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "videollama_server.endpoint", str(self._path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C must reach only `vl2 serve`, which then drains
            )
        try:
            self.exchange(status, _START_SECONDS)
        except OSError as error:
            self.end()
            text = self._log.read_bytes()[begin:].decode(errors="replace")
            lines = [line for line in text.splitlines() if line.startswith("vl2-endpoint: ")]
            reason = lines[-1].partition(" ")[2] if lines else str(error)
            raise ServerFailed(f"the endpoint does not start: {reason}") from error

    def exchange(self, status: SupervisorStatus, timeout: float = _ANSWER_SECONDS) -> EndpointStatus:
        """Send the supervisor's status and return the endpoint's. Raises: OSError if it is dead or does not answer."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ConnectionError("the endpoint is not running")
        process.stdin.write(status.to_line())
        process.stdin.flush()
        if not any(select.select([process.stdout], [], [], timeout / _WAITS)[0] for _ in range(_WAITS)):
            raise TimeoutError("the endpoint does not answer")
        line = process.stdout.readline()
        if not line:
            raise ConnectionError("the endpoint ended")
        return EndpointStatus(**json.loads(line))

    def reload_keys(self) -> None:
        """Make the endpoint reread its API keys."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def end(self) -> None:
        """Stop the process by closing its stdin; kill it if it does not end in time."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unwritten data for a dead process
                    pass
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
