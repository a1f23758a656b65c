"""`vl2 serve --openai`: a gateway beside the server, in a process that ends with it."""

import importlib.util
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from videollama_core.protocol.errors import InvalidRequest, ServerFailed
from videollama_server.endpoint.access import Access
from videollama_server.machine import with_parent
from videollama_server.ports import choose_ports

logger = logging.getLogger(__name__)
_NEEDS = ("starlette", "uvicorn", "prometheus_client")
_AGAIN_SECONDS = 1.0
_END_SECONDS = 35.0  # a gateway gives running answers 30


@dataclass(frozen=True)
class GatewayAddress:
    host: str
    port: int


def read_openai(text: str | None, access: Access) -> GatewayAddress | None:
    """What --openai [HOST:]PORT means, before anything is begun; 0 picks a free port.

    Raises: InvalidRequest; ServerFailed where the port is taken, or the gateway's packages are missing.
    """
    if text is None:
        return None
    host, separator, port = text.rpartition(":")
    host = host.strip("[]") if separator else "127.0.0.1"
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidRequest(f"--openai is {text!r}; wanted a port, or HOST:PORT")
    if access.tls_cert is not None or access.api_keys is not None:
        raise InvalidRequest(
            "--openai opens plain HTTP that asks for no key, beside TLS or keys of --tls-cert or --api-keys; leave it out, "
            "and start vl2 gateway with a certificate or a key of its own"
        )
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ServerFailed(f"--openai needs {', '.join(missing)}; pip install 'videollama2-service[gateway]'")
    if ":" not in host:
        choose_ports(host, {"--openai": int(port)})
    return GatewayAddress(host, int(port))


class GatewayProcess:
    """Started again when it ends by itself.

    Args:
        server: host:port of the server's gRPC.
        environment: of the process; None is that of this one.
    """

    def __init__(self, address: GatewayAddress, server: str, environment: Mapping[str, str] | None = None) -> None:
        self._host, self._port, self._server = address.host, address.port, _reachable(server)
        self._environment = environment
        self._closing = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Its URL. Raises: ServerFailed."""
        started = threading.Event()
        # PR_SET_PDEATHSIG counts the thread that makes a process as its parent: this one lives as long as the server.
        threading.Thread(target=self._keep, args=(started,), name="gateway", daemon=True).start()
        started.wait()
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed("the gateway of --openai does not start; its reason stands above")
        return f"http://{_bracketed(self._host)}:{self._port}/v1"

    def _keep(self, started: threading.Event) -> None:
        while not self._closing.is_set():
            listens = self._launch()
            process = self._process
            first = not started.is_set()
            started.set()
            if process is None or (first and not listens):
                return
            code = process.wait()
            if not self._closing.wait(_AGAIN_SECONDS):
                logger.warning("the gateway ended by itself with code %d; starting it again", code)

    def _launch(self) -> bool:
        """Whether it listens."""
        words = ["gateway", "--server", self._server, "--host", self._host, "--port", str(self._port)]
        try:
            process = subprocess.Popen(
                with_parent.command([sys.executable, "-m", "videollama_client", *words]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches `vl2 serve` alone, which ends this when running answers have ended
            )
        except OSError as error:  # no memory, or no place for a process, say
            logger.error("the gateway cannot be started: %s", error)
            return False
        self._process = process
        assert process.stdout is not None
        said = process.stdout.readline().partition("/v1")[0]
        if not said:
            process.wait()
            return False
        self._port = int(said.rpartition(":")[2])  # the one that was picked; another start keeps it
        return True

    def close(self) -> None:
        """Running answers may end."""
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
    """Where a server that listens at `address` is reached from this machine."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
