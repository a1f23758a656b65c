"""One Triton process: its start, the reason why it did not start, its admin API, and its end."""

import json
import os
import re
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from videollama_core.protocol.contract import RUNNING_METRIC
from videollama_core.protocol.errors import ServerFailed
from videollama_server.processes import end_with_parent

ADMIN_HEADER = "vl2-admin"  # opens the model repository's API, which can run code, to this process alone
_POLL_SECONDS = 0.1
_END_SECONDS = 8.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Addresses:
    """Where a server listens."""

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int


class TritonProcess:
    """A tritonserver and its stages.

    Args:
        secret: value of `ADMIN_HEADER` that the command restricts the admin API to.
    """

    def __init__(self, addresses: Addresses, log: Path, secret: str) -> None:
        self._addresses, self._log, self._secret = addresses, log, secret
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @staticmethod
    def new_secret() -> str:
        return secrets.token_urlsafe(24)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self, command: list[str], environment: dict[str, str]) -> None:
        """Raises: ServerFailed if the log cannot be written."""
        try:
            log: IO[bytes] = self._log.open("ab")
        except OSError as error:
            raise ServerFailed(
                f"the log {self._log} cannot be written: {error.strerror}; choose another with --log"
            ) from error
        with log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches `vl2 serve` alone, which then drains
                preexec_fn=end_with_parent,
            )

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def wait_until_ready(self, seconds: float) -> None:
        """Raises: ServerFailed with the failing stage's reason when it ends first, or is not ready in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.is_running():
                raise ServerFailed(f"Triton ended with code {self.wait()} while it started. {self._reason()}")
            try:
                self.request("GET", "/v2/health/ready", timeout=2)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"Triton was not ready after {seconds:g} s")

    def _reason(self) -> str:
        """The failing stage's own words, from the log."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        failures = re.findall(r"failed to load '(\w+)' version \d+: (.*)", text)
        if failures:
            return "; ".join(f"stage {stage}: {_without_code(reason)}" for stage, reason in failures)
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} ", line)]
        return errors[-1] if errors else "It left no reason."

    def request(self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float = 10) -> bytes:
        """Ask the HTTP API. Raises: OSError, urllib's errors among them."""
        url = f"http://{self._addresses.host}:{self._addresses.http_port}{path}"
        data = None if body is None else json.dumps(body).encode()
        headers = {ADMIN_HEADER: self._secret, "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return bytes(response.read())

    def unload(self, stage: str) -> None:
        self.request("POST", f"/v2/repository/models/{stage}/unload", {"parameters": {"unload_dependents": False}})

    def load(self, stage: str, timeout: float) -> None:
        self.request("POST", f"/v2/repository/models/{stage}/load", {}, timeout=timeout)

    def running_requests(self, stage: str) -> int:
        """Of a stage, by its own count (its last one if it died): Triton's would go on counting what died with it."""
        url = f"http://{self._addresses.host}:{self._addresses.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        pattern = rf'^{RUNNING_METRIC}{{.*"{stage}".*}} (\S+)$'
        return sum(int(float(value)) for value in re.findall(pattern, text, re.MULTILINE))

    def end(self) -> None:
        """End the server and every stub that would outlive it."""
        if self._process is None:
            return
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _without_code(reason: str) -> str:
    """Triton's code word in front of a reason is noise here."""
    return re.sub(r"^(Internal|Invalid argument|Unavailable): ", "", reason.strip()).strip()
