"""Callers that cost little: many answers at a time are read as bytes, and looked at when all are there."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from videollama_benchmarks.overhead.free_model import expected_ids
from videollama_client.answer_reader import AnswerReader
from videollama_client.wire import build_question
from videollama_core.protocol.errors import StageFailed

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_QUESTION = "What happens in the video?"


@dataclass
class Read:
    """One answer, in seconds since all were asked."""

    messages: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def answer(self, tokens: int) -> AnswerReader:
        """Raises: StageFailed unless it is the free model's, whole and in order."""
        reader = AnswerReader()
        for message in self.messages:
            reader.read(service_pb2.ModelStreamInferResponse.FromString(message))
        ids = reader.finish().output_ids
        if ids != expected_ids(ids[0], tokens):
            raise StageFailed(f"an answer has {len(ids)} ids of {tokens}, or others than the free model's")
        return reader

    @property
    def first_text(self) -> float:
        """Of the first message with an id: the one that tells the process's name alone has no outputs of text."""
        return next(time for message, time in zip(self.messages, self.times, strict=True) if b"output_ids" in message)


async def ask_at_once(address: str, callers: int, tokens: int) -> list[Read]:
    """Equal questions, one of each caller on a connection of its own, begun together."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(callers)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        request = build_question(_QUESTION, None, {"max_new_tokens": tokens}).SerializeToString()
        began = time.perf_counter()
        return await asyncio.gather(*(_ask(channel, request, began) for channel in channels))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _ask(channel: grpc.aio.Channel, request: bytes, began: float) -> Read:
    found = Read()
    call = channel.stream_stream(_METHOD)(_once(request))
    while (message := await call.read()) is not grpc.aio.EOF:
        found.messages.append(message)
        found.times.append(time.perf_counter() - began)
    return found


async def _once(request: bytes) -> AsyncIterator[bytes]:
    yield request


def spread(reads: Sequence[Read]) -> float:
    """Of the time of the slowest of equal requests to that of the fastest."""
    ends = [read.times[-1] for read in reads]
    return max(ends) / min(ends)
