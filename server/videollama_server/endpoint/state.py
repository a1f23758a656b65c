"""What the endpoint knows of the server behind it, and how it hears of it.

The supervisor writes one line of JSON to the endpoint's stdin twice a second, and the endpoint answers with one on its
stdout. The end of stdin is the end of the supervisor, and so of the endpoint.
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
from videollama_core.telemetry.figures import MODEL_LABEL, REFUSED

STALE_SECONDS = 3.0  # after so long without a word from the supervisor, nothing is known any more


@dataclass(frozen=True)
class Told:
    """What the supervisor says.

    Args:
        not_ready: why no media question would be answered; "" when one would.
        accepts: whether new requests are taken; running ones always go on.
        restarts: where they are not: whether the server comes back by itself.
    """

    not_ready: str
    accepts: bool = True
    restarts: bool = False

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class State:
    """Readiness, the number of requests on their way, and of those refused."""

    def __init__(self) -> None:
        self.told = Told("the server is starting")
        self.heard = -math.inf
        self.triton_answers = False
        self.pending = 0
        self._refused = Counter(
            {kind.__name__: 0 for kind in (InvalidRequest, NotAllowed, Overloaded, ServerUnreachable)}
        )

    def refused(self, error: VideoLlamaError) -> None:
        """A question was refused before a stage was asked."""
        self._refused[error.kind] += 1

    def exposition(self) -> bytes:
        """The endpoint's own figures, for Prometheus."""
        figure = REFUSED
        lines = [f"# HELP {figure.name} {figure.meaning}", f"# TYPE {figure.name} {figure.kind}"]
        (label,) = figure.labels
        lines += [
            f'{figure.name}{{{MODEL_LABEL}="{ENTRY.name}",{label}="{kind}"}} {count}'
            for kind, count in self._refused.items()
        ]
        return "\n".join([*lines, ""]).encode()

    @property
    def not_ready(self) -> str:
        """Why a question would not be answered; "" when one would."""
        if self.told.not_ready:
            return self.told.not_ready
        if time.monotonic() - self.heard > STALE_SECONDS:
            return "the supervisor says nothing"
        return "" if self.triton_answers else "Triton does not answer"


async def listen(state: State) -> None:
    """Until stdin ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        state.told, state.heard = Told(**json.loads(line)), time.monotonic()
        sys.stdout.write(json.dumps({"pending": state.pending, "ready": not state.not_ready}) + "\n")
        sys.stdout.flush()
