"""Callers with little overhead of their own: many concurrent answers are read as bytes, and parsed when all are complete."""

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
class TimedStream:
    """The messages of one answer, with their times in seconds since all requests were sent."""

    messages: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def answer(self, tokens: int) -> AnswerReader:
        """Parse the answer. Raises: StageFailed unless it is the free model's, complete and in order."""
        reader = AnswerReader()
        for message in self.messages:
            reader.read(service_pb2.ModelStreamInferResponse.FromString(message))
        ids = reader.finish().output_ids
        if ids != expected_ids(ids[0], tokens):
            raise StageFailed(f"an answer has {len(ids)} of {tokens} ids, or ids that are not the free model's")
        return reader

    @property
    def first_text(self) -> float:
        """Time of the first message with ids; the message before it only has the process's name."""
        return next(time for message, time in zip(self.messages, self.times, strict=True) if b"output_ids" in message)


async def ask_at_once(address: str, callers: int, tokens: int) -> list[TimedStream]:
    """Send equal questions at the same time, each over a separate connection."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(callers)]
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        request = build_question(_QUESTION, None, {"max_new_tokens": tokens}).SerializeToString()
        began = time.perf_counter()
        return await asyncio.gather(*(_ask(channel, request, began) for channel in channels))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _ask(channel: grpc.aio.Channel, request: bytes, began: float) -> TimedStream:
    stream = TimedStream()
    call = channel.stream_stream(_METHOD)(_once(request))
    while (message := await call.read()) is not grpc.aio.EOF:
        stream.messages.append(message)
        stream.times.append(time.perf_counter() - began)
    return stream


async def _once(request: bytes) -> AsyncIterator[bytes]:
    yield request


def spread(reads: Sequence[TimedStream]) -> float:
    """Ratio of the slowest to the fastest of equal requests."""
    ends = [read.times[-1] for read in reads]
    return max(ends) / min(ends)
