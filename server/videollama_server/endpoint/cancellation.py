"""Cancel a call to the entry by a message instead of a reset of its HTTP/2 stream.

A reset can crash Triton 2.51 (server issue 7840), which fails the requests of all callers.
"""

import asyncio

from tritonclient.grpc import service_pb2

from videollama_core.protocol import contract
from videollama_core.protocol.trace_context import CANCELLED
from videollama_server.http2.call import Call
from videollama_server.http2.channel import STREAM_INFER, Channel

_RETRY_SECONDS = 0.25  # between two messages: one that arrives before its request has no effect
_ATTEMPTS = 20  # after which the call is reset


def _ping() -> bytes:
    request = service_pb2.ModelInferRequest(model_name=contract.ENTRY.name, raw_input_contents=[b"\1"])
    request.inputs.add(name=contract.PING.name, datatype=contract.PING.wire_dtype, shape=[1])
    return bytes(request.SerializeToString())


_PING = _ping()


class Cancellation:
    """Sends the entry pings that name the request, until its call has ended.

    Args:
        mark: the endpoint's id of the request.
    """

    def __init__(self, triton: Channel, call: Call, mark: str) -> None:
        self._triton, self._call, self._mark = triton, call, mark
        self._attempts, self.has_ended = 0, False
        self._send()

    def _send(self) -> None:
        if self.has_ended or self._call.ended is not None:
            return
        self._attempts += 1
        metadata = ((CANCELLED, self._mark),)
        if self._attempts > _ATTEMPTS or not self._triton.open_at_once(STREAM_INFER, _PING, self, metadata):
            self._call.cancel()
            return
        asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._send)

    def on_messages(self, messages: list[bytes]) -> None:
        """Ignore the entry's answer to the ping; only the end of the call matters."""

    def on_end(self, status: int, details: str) -> None: ...
