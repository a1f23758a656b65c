"""`vl2 serve --openai`: a gateway in a process beside the server, which ends with it."""

import importlib.util
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from videollama_core.protocol.errors import InvalidRequest, ServerFailed
from videollama_server.endpoint.access import Access
from videollama_server.machine import with_parent
from videollama_server.ports import bracketed, choose_ports

logger = logging.getLogger(__name__)
_NEEDS = ("starlette", "uvicorn", "prometheus_client")
_RESTART_SECONDS = 1.0
_END_SECONDS = 35.0  # a gateway waits 30 s for running answers


@dataclass(frozen=True)
class GatewayAddress:
    """Where a gateway listens; port 0 picks a free one. `examples` is a folder of media for the web page."""

    host: str
    port: int
    examples: Path | None = None


def read_openai(text: str | None, access: Access, examples: Path | None = None) -> GatewayAddress | None:
    """Parse and check --openai [HOST:]PORT and --examples before anything is started; None without --openai.

    Raises: InvalidRequest; ServerFailed if the port is in use, or the gateway's packages are missing.
    """
    if text is None:
        if examples is not None:
            raise InvalidRequest("--examples came without --openai, whose web page would offer them; add --openai PORT")
        return None
    host, separator, port = text.rpartition(":")
    host = host.strip("[]") if separator else "127.0.0.1"
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidRequest(f"--openai is {text!r}; wanted PORT or HOST:PORT")
    if access.tls_cert is not None or access.api_keys is not None:
        raise InvalidRequest(
            "--openai opens plain HTTP that asks for no key, which bypasses --tls-cert and --api-keys; leave it out, "
            "and start vl2 gateway with a certificate or a key of its own"
        )
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ServerFailed(f"--openai needs {', '.join(missing)}; pip install 'videollama2-service[gateway]'")
    choose_ports(host, {"--openai": int(port)})
    return GatewayAddress(host, int(port), examples)


class GatewayProcess:
    """A gateway process, which is restarted if it ends by itself.

    Args:
        server: host:port of the server's gRPC port.
        environment: of the gateway; None means that of this process.
    """

    def __init__(self, address: GatewayAddress, server: str, environment: Mapping[str, str] | None = None) -> None:
        self._host, self._port, self._server = address.host, address.port, _reachable(server)
        self._options = [] if address.examples is None else ["--examples", str(address.examples)]
        self._environment = environment
        self._closing = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it, and return its URL. Raises: ServerFailed."""
        started = threading.Event()
        # For PR_SET_PDEATHSIG, the parent is the thread that starts a process; this one lives as long as the server.
        threading.Thread(target=self._keep, args=(started,), name="gateway", daemon=True).start()
        started.wait()
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed("the gateway of --openai did not start; see its error above")
        return f"http://{bracketed(self._host)}:{self._port}/v1"

    def _keep(self, started: threading.Event) -> None:
        while not self._closing.is_set():
            is_listening = self._launch()
            process = self._process
            is_first = not started.is_set()
            started.set()
            if process is None or (is_first and not is_listening):
                return
            code = process.wait()
            if not self._closing.wait(_RESTART_SECONDS):
                logger.warning("the gateway ended by itself with code %d; starting it again", code)

    def _launch(self) -> bool:
        """Start the process once; return whether it listens."""
        arguments = [
            "gateway",
            "--server",
            self._server,
            "--host",
            self._host,
            "--port",
            str(self._port),
            *self._options,
        ]
        try:
            process = subprocess.Popen(
                with_parent.command([sys.executable, "-m", "videollama_client", *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C must reach only `vl2 serve`, which ends this after running answers
            )
        except OSError as error:  # for example no memory, or too many processes
            logger.error("the gateway cannot be started: %s", error)
            return False
        self._process = process
        assert process.stdout is not None
        address_line = process.stdout.readline().partition("/v1")[0]
        if not address_line:
            process.wait()
            return False
        self._port = int(address_line.rpartition(":")[2])  # the port that was picked; a restart keeps it
        return True

    def close(self) -> None:
        """Stop it, after its running answers."""
        self._closing.set()
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reachable(address: str) -> str:
    """The address at which this machine reaches a server that listens at `address`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{bracketed(host)}:{port}"
