"""Requests of the language model, and the one event loop in which all its answers arrive.

Our own engines are asked at the stage's own socket (`direct`), TensorRT-LLM's backend at the server's gRPC socket: Triton 2.51
corrupts the memory of a Python stage that reads many responses of one request by BLS (docs/log.md).
"""

import array
import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from tritonclient.grpc import service_pb2

from videollama_core.protocol import contract
from videollama_core.protocol.errors import StageFailed, StageRestarting, VideoLlamaError, from_wire
from videollama_server.answers.answering import Listener
from videollama_server.direct.channel import DirectChannel
from videollama_server.http2.channel import OK, STREAM_INFER, Channel
from videollama_server.processes import is_alive

logger = logging.getLogger(__name__)
_STAGE = contract.LANGUAGE_MODEL.name
STOP_SECONDS = 0.25  # between two requests to stop one answer
_RESTARTING = f"stage {_STAGE}: it is being started again, send the request again"
DIED = f"stage {_STAGE}: its process died while it answered; it is being started again, send the request again"
LOOK_SECONDS = 0.05  # how often, in silence, it is looked whether the stage's process still lives


class Running(Protocol):
    """A request that the language model's stage has."""

    process: int | None  # of the stage; None where it has none, or it cannot be seen
    heard: float  # when it last said something, of the monotonic clock

    def on_death(self) -> None: ...


class AnswerLoop:
    """The event loop of all answers, in a thread of its own.

    Args:
        address: unix:PATH or HOST:PORT of the server's own gRPC; None where nothing is asked over it.
        language_model: path of the language model's own socket; None where it has none.
    """

    def __init__(self, address: str | None, language_model: str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self.channel = Channel(address or "")
        self.direct = DirectChannel(language_model or "", self._loop)
        self._running: set[Running] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self.channel.close()
        self.direct.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))  # the ends of connection and tasks
        self._loop.close()

    def call(self, work: Callable[[], None]) -> None:
        """Do it in the loop's thread, from any thread, in the order of the calls; nothing any more once it is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Likewise, after so long."""

        def begin() -> None:
            self._loop.call_later(seconds, work)

        self.call(begin)

    def close(self) -> None:
        """Nothing more is said."""
        self.call(self._loop.stop)
        self._thread.join()

    # --- in the loop's thread ---

    def watch(self, running: Running) -> None:
        """Tell it when its process dies, until it is forgotten."""
        self._running.add(running)
        if not self._looking:
            self._looking = True
            self._loop.call_later(LOOK_SECONDS, self._look)

    def forget(self, running: Running) -> None:
        self._running.discard(running)

    def send(self, message: bytes, listener: "GrpcGeneration | _Nobody") -> None:
        if self.channel.open_at_once(STREAM_INFER, message, listener):
            return
        task = self._loop.create_task(self._send(message, listener))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, message: bytes, listener: "GrpcGeneration | _Nobody") -> None:
        try:
            await self.channel.open(STREAM_INFER, message, listener)
        except OSError as error:
            listener.on_end(-1, str(error))

    def _look(self) -> None:
        """A stage that was killed neither ends nor fails its calls."""
        now = time.monotonic()
        alive: dict[int, bool] = {}
        for one in list(self._running):
            if one.process is not None and now - one.heard >= LOOK_SECONDS:
                if one.process not in alive:
                    alive[one.process] = is_alive(one.process)
                if not alive[one.process]:
                    one.on_death()
        self._looking = bool(self._running)
        if self._looking:
            self._loop.call_later(LOOK_SECONDS, self._look)


class _Nobody:
    """Hears nothing, neither as a listener of a call (of a request to stop) nor of a generation (that has ended)."""

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_ids(self, ids: list[int]) -> None: ...

    def on_cached_tokens(self, count: int) -> None: ...

    def on_end(self, *_: object) -> None: ...


_NOBODY = _Nobody()


class DirectGeneration:
    """One request of the language model at its own socket."""

    def __init__(self, loop: AnswerLoop, message: bytes, listener: Listener) -> None:
        self._loop, self._message = loop, message
        self._listener: Listener = listener
        self._number = loop.direct.number()
        self._ended = False

    def start(self) -> None:
        """In the caller's thread: to wake the loop's for it takes longer than to send a request."""
        message, self._message = self._message, b""
        try:
            self._loop.direct.open(self._number, message, self)
        except OSError:
            self._loop.call(lambda: self.on_end(StageRestarting(_RESTARTING)))

    def on_ids(self, ids: list[int], cached_tokens: int) -> None:
        if cached_tokens:
            self._listener.on_cached_tokens(cached_tokens)
        self._listener.on_ids(ids)

    def on_end(self, error: VideoLlamaError | None) -> None:
        if not self._ended:
            self._ended = True
            listener, self._listener = self._listener, _NOBODY  # which knows this: neither is to keep the other
            listener.on_end(error)

    def on_lost(self) -> None:
        self.on_end(StageFailed(DIED))

    def stop(self) -> None:
        self._ended, self._listener = True, _NOBODY
        self._loop.direct.stop(self._number)


class GrpcGeneration:
    """One request of the language model; hears its call.

    Args:
        message, stop_message: serialised requests: of the prompt, and to end it.
    """

    def __init__(
        self,
        loop: AnswerLoop,
        message: bytes,
        stop_message: Callable[[], bytes],
        listener: Listener,
        process: int | None,
    ) -> None:
        self._loop, self.process = loop, process
        self._listener: Listener = listener
        self._message, self._stop_message = message, stop_message
        self.heard = time.monotonic()
        self._ended = False

    def start(self) -> None:
        self._loop.call(self._open)

    def _open(self) -> None:
        message, self._message = self._message, b""
        self._loop.watch(self)
        self._loop.send(message, self)

    def on_messages(self, messages: list[bytes]) -> None:
        self.heard = time.monotonic()
        if self._ended:
            return
        ids: list[int] = []
        error: VideoLlamaError | None = None
        for message in messages:
            found = service_pb2.ModelStreamInferResponse.FromString(message)
            if found.error_message:
                error = from_wire(found.error_message)
                break
            response = found.infer_response
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
                if output.name == contract.OUTPUT_IDS.name:
                    ids += array.array("i", raw)
                elif output.name == contract.REUSED_BLOCKS.name:
                    self._listener.on_cached_tokens(array.array("i", raw)[0])
        if ids:
            self._listener.on_ids(ids)
        if error is not None:
            self._end(error)

    def on_end(self, status: int, details: str) -> None:
        self._end(None if status == OK else StageFailed(f"stage {_STAGE}: {details}"))

    def on_death(self) -> None:
        self._end(StageFailed(DIED))

    def _end(self, error: VideoLlamaError | None) -> None:
        self._loop.forget(self)
        if not self._ended:
            self._ended = True
            listener, self._listener = self._listener, _NOBODY  # which knows this: neither is to keep the other
            listener.on_end(error)

    def stop(self) -> None:
        """The `stop` request of the TensorRT-LLM contract.

        Sent again until the answer has ended: one that overtakes its request names an id that is not yet known, and is lost.
        """
        if not self._ended:
            self._loop.send(self._stop_message(), _NOBODY)
            self._loop.later(STOP_SECONDS, self.stop)
