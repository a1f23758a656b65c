"""What the endpoint is told once, in a file of the run's private folder. No secret stands in it, or on a command line."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from videollama_core.protocol import contract
from videollama_core.telemetry.logs import LogStyle
from videollama_server.endpoint.access import Access


def exposed_models(ensemble: bool, stages: bool) -> tuple[str, ...]:
    """The models that callers may ask: the entry, and what the operator adds."""
    if stages:
        return tuple(contract.STAGES)
    return (contract.ENTRY.name, contract.ENSEMBLE.name) if ensemble else (contract.ENTRY.name,)


def loaded_stages(exposed: Sequence[str]) -> tuple[str, ...]:
    """The stages that a server needs: those of the static ensemble only where callers may ask it."""
    own = (contract.PROMPT.name, contract.DETOKENIZE.name, contract.ENSEMBLE.name)
    return tuple(stage for stage in contract.STAGES if contract.ENSEMBLE.name in exposed or stage not in own)


@dataclass(frozen=True)
class EndpointConfig:
    """
    Args:
        address: host:port to listen on.
        http_address: host:port of the read-only HTTP; "" for none.
        triton: gRPC target of Triton.
        metrics: Unix socket of Triton's metrics.
        exposed: models that callers may ask.
        access: who gets in.
        log: how its lines are written.
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
        found = json.loads(path.read_text("utf-8"))
        access, log = Access(**found["access"]), LogStyle(**found["log"])
        return cls(**found | {"exposed": tuple(found["exposed"]), "access": access, "log": log})
