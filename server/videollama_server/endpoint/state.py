"""The endpoint's view of the server behind it, and the status exchange with the supervisor.

Twice a second, the supervisor writes a line of JSON to the endpoint's stdin, and the endpoint answers with one on its
stdout. When stdin closes, the supervisor is gone, and the endpoint ends.
"""

import asyncio
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import InvalidRequest, NotAllowed, Overloaded, ServerUnreachable, VideoLlamaError
from videollama_core.telemetry.metric_definitions import MODEL_LABEL, REFUSED

STALE_SECONDS = 3.0  # a supervisor status older than this no longer counts


@dataclass(frozen=True)
class SupervisorStatus:
    """The supervisor's status.

    Args:
        not_ready: why the server could not answer a question about media now; "" if it could.
        accepts: whether new requests are accepted; running ones always continue.
        restarts: if they are not accepted, whether the server is restarting rather than stopping.
    """

    not_ready: str
    accepts: bool = True
    restarts: bool = False

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class State:
    """Readiness, and the numbers of active and refused requests."""

    def __init__(self) -> None:
        self.supervisor = SupervisorStatus("the server is starting")
        self.updated = -math.inf  # when `supervisor` was received
        self.triton_answers = False
        self.pending = 0
        self._refused = Counter(
            {kind.__name__: 0 for kind in (InvalidRequest, NotAllowed, Overloaded, ServerUnreachable)}
        )

    def refused(self, error: VideoLlamaError) -> None:
        """Count a request that was refused before it reached a stage."""
        self._refused[error.kind] += 1

    def exposition(self) -> bytes:
        """The endpoint's own metrics, in Prometheus' text format."""
        definition = REFUSED
        lines = [f"# HELP {definition.name} {definition.meaning}", f"# TYPE {definition.name} {definition.kind}"]
        (label,) = definition.labels
        lines += [
            f'{definition.name}{{{MODEL_LABEL}="{ENTRY.name}",{label}="{kind}"}} {count}'
            for kind, count in self._refused.items()
        ]
        return "\n".join([*lines, ""]).encode()

    @property
    def not_ready(self) -> str:
        """Why the server could not answer a question now; "" if it could."""
        if self.supervisor.not_ready:
            return self.supervisor.not_ready
        if time.monotonic() - self.updated > STALE_SECONDS:
            return "the supervisor does not respond"
        return "" if self.triton_answers else "Triton does not answer"


async def listen(state: State) -> None:
    """Receive and answer the supervisor's status until stdin closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        state.supervisor, state.updated = SupervisorStatus(**json.loads(line)), time.monotonic()
        sys.stdout.write(json.dumps({"pending": state.pending, "ready": not state.not_ready}) + "\n")
        sys.stdout.flush()
