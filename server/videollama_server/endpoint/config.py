"""The endpoint's configuration: a file in the run's private folder. It holds no secrets, nor does the command line."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from videollama_core.protocol import contract
from videollama_core.telemetry.logs import LogStyle
from videollama_server.endpoint.access import Access


def exposed_models(ensemble: bool, stages: bool) -> tuple[str, ...]:
    """The models that callers may use: the entry, and what the operator exposes besides."""
    if stages:
        return tuple(contract.STAGES)
    return (contract.ENTRY.name, contract.ENSEMBLE.name) if ensemble else (contract.ENTRY.name,)


def loaded_stages(exposed: Sequence[str]) -> tuple[str, ...]:
    """The stages to load; those that only the static ensemble uses, only if it is exposed."""
    ensemble_only = (contract.PROMPT.name, contract.DETOKENIZE.name, contract.ENSEMBLE.name)
    return tuple(stage for stage in contract.STAGES if contract.ENSEMBLE.name in exposed or stage not in ensemble_only)


@dataclass(frozen=True)
class EndpointConfig:
    """
    Args:
        address: host:port to listen on.
        http_address: host:port of the read-only HTTP server; "" for none.
        triton: gRPC target of Triton.
        metrics: Unix socket of Triton's metrics.
        exposed: models that callers may use.
        with_statistics: whether ModelStatistics is exposed.
        access: who may call.
        log: the format of log lines.
    """

    address: str
    http_address: str
    triton: str
    metrics: str
    exposed: tuple[str, ...]
    with_statistics: bool = False
    access: Access = Access()
    log: LogStyle = LogStyle()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, path: Path) -> "EndpointConfig":
        fields = json.loads(path.read_text("utf-8"))
        access, log = Access(**fields["access"]), LogStyle(**fields["log"])
        return cls(**fields | {"exposed": tuple(fields["exposed"]), "access": access, "log": log})
