"""Events of an answer: what ends a stream that has begun."""

import asyncio
import json

from videollama_core.protocol.errors import StageFailed
from videollama_gateway.answer_route import _events
from videollama_gateway.api.chat_request import ChatRequest
from videollama_gateway.api.completions import CompletionFormat


def test_an_internal_error_is_reported_in_the_stream():
    """It was counted as a disconnected client, and the stream ended without a message."""

    class Answering:
        first, error = "A", None

        async def rest(self):
            yield " red"
            raise KeyError("colour")

        def failed(self, error) -> None:
            self.error = error

    async def read() -> list[str]:
        return [event async for event in _events(answering, CompletionFormat(ChatRequest("videollama2", []), "1"))]

    answering = Answering()
    *texts, last = asyncio.run(read())
    assert len(texts) == 2 and isinstance(answering.error, StageFailed)
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
