"""Triton's own endpoints: Unix sockets in the run's private folder, which no other user of the machine can access.

They need no secret, which a command line could reveal, and no open port, which the network could reach.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.protocol.contract import RUNNING_METRIC
from videollama_core.protocol.errors import ServerFailed
from videollama_server.endpoint.read_only_http import metrics_folder, read_metrics

_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # a shared connection that has failed would delay this one
_LONGEST = 107  # bytes of a Unix socket's path (sun_path on Linux)


@dataclass(frozen=True)
class Sockets:
    """The paths of Triton's sockets.

    Args:
        folder: must have mode 0700.
    """

    folder: Path

    @property
    def grpc(self) -> Path:
        """The gRPC socket. Triton joins address and port with a colon."""
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
    def stage_metrics(self) -> Path:
        """The folder beside them for the metrics of the stages, one file each."""
        return metrics_folder(self.metrics)

    def words(self) -> list[str]:
        """The options that make Triton listen only on these sockets."""
        return [
            "--allow-http=false",
            f"--grpc-address=unix:{self.folder / 'grpc'}",
            "--grpc-port=1",
            f"--metrics-address=unix:{self.metrics}",
        ]

    def prepare(self) -> None:
        """Remove the sockets of a killed Triton. Raises: ServerFailed if the folder's path is too long."""
        if len(str(self.metrics).encode()) > _LONGEST:
            raise ServerFailed(f"the path {self.folder} is too long for Unix sockets; set TMPDIR to a shorter one")
        for path in (self.grpc, self.metrics):
            path.unlink(missing_ok=True)


class TritonControl:
    """Control calls to a Triton process. Each raises ConnectionError, an OSError, if Triton does not answer."""

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
        """The running requests of a stage by its own count, or its last count if it died; Triton's count keeps dead ones."""
        text = read_metrics(str(self._sockets.metrics)).decode()
        pattern = rf'^{RUNNING_METRIC}{{model="{stage}"}} (\S+)$'
        return sum(int(float(value)) for value in re.findall(pattern, text, re.MULTILINE))
