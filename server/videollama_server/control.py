"""Triton's own endpoints: Unix sockets in the run's private folder, which nobody else of the machine can enter.

No secret guards them, so none can be read from a command line; no port is open, so nothing answers the network.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.protocol.contract import RUNNING_METRIC
from videollama_core.protocol.errors import ServerFailed
from videollama_server.endpoint.read_only_http import figures_beside, read_metrics

_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # one that failed before would make this one wait
_LONGEST = 107  # bytes of the path of a Unix socket (sun_path of Linux)


@dataclass(frozen=True)
class Sockets:
    """
    Args:
        folder: of mode 0700.
    """

    folder: Path

    @property
    def grpc(self) -> Path:
        """Triton joins address and port with a colon."""
        return self.folder / "grpc:1"

    @property
    def grpc_target(self) -> str:
        return f"unix:{self.grpc}"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics"

    @property
    def language_model(self) -> Path:
        """Of our own engines; the stage itself listens there."""
        return self.folder / "llm"

    @property
    def figures(self) -> Path:
        """A folder beside it: the stages' own figures, a file each."""
        return figures_beside(self.metrics)

    def words(self) -> list[str]:
        """What makes Triton listen here, and nowhere else."""
        return [
            "--allow-http=false",
            f"--grpc-address=unix:{self.folder / 'grpc'}",
            "--grpc-port=1",
            f"--metrics-address=unix:{self.metrics}",
        ]

    def prepare(self) -> None:
        """Remove what a Triton that was killed left. Raises: ServerFailed where the folder's path is too long."""
        if len(str(self.metrics).encode()) > _LONGEST:
            raise ServerFailed(f"{self.folder} is too long for a path of Unix sockets; set TMPDIR to a shorter folder")
        for path in (self.grpc, self.metrics):
            path.unlink(missing_ok=True)


class TritonControl:
    """Questions and orders to a Triton process. Each raises ConnectionError, an OSError, when it does not answer."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def check_ready(self) -> None:
        if not self._ask("ServerReady", service_pb2.ServerReadyRequest(), 2).ready:
            raise ConnectionError("Triton is not ready")

    def load(self, stage: str, timeout: float) -> None:
        self._ask("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=stage), timeout)

    def unload(self, stage: str) -> None:
        self._ask("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=stage), 10)

    def _ask(self, name: str, request: Any, timeout: float) -> Any:
        with grpc.insecure_channel(self._sockets.grpc_target, options=_OWN_CONNECTION) as channel:
            try:
                return getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), name)(request, timeout=timeout)
            except grpc.RpcError as error:
                raise ConnectionError(f"{name}: {error.details()}") from error

    def running_requests(self, stage: str) -> int:
        """Of a stage, by its own count (its last one if it died): Triton's would go on counting what died with it."""
        text = read_metrics(str(self._sockets.metrics)).decode()
        pattern = rf'^{RUNNING_METRIC}{{model="{stage}"}} (\S+)$'
        return sum(int(float(value)) for value in re.findall(pattern, text, re.MULTILINE))
