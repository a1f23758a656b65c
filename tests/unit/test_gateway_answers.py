"""Events of an answer: what ends a stream that has begun."""

import asyncio
import json

from videollama_core.protocol.errors import StageFailed
from videollama_gateway.app import _events
from videollama_gateway.completions import Completion


def test_a_fault_of_the_gateways_own_is_told_as_one():
    """It counted as a caller who left, and the stream ended without a word."""

    class Answering:
        first, told = "A", None

        async def rest(self):
            yield " red"
            raise KeyError("colour")

        def failed(self, error) -> None:
            self.told = error

    async def read() -> list[str]:
        return [event async for event in _events(answering, Completion("1", "videollama2"))]

    answering = Answering()
    *texts, last = asyncio.run(read())
    assert len(texts) == 2 and isinstance(answering.told, StageFailed)
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
