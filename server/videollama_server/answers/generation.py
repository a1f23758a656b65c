"""Requests to the language model, and the one event loop that receives all its responses.

Our own engines are called over the stage's own socket (`direct`), TensorRT-LLM's backend over the server's gRPC socket: Triton 2.51
corrupts the memory of a Python stage that reads many responses to one request through BLS (docs/log.md).
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

from videollama_core.event_loop import loop_factory
from videollama_core.protocol import contract
from videollama_core.protocol.errors import StageDied, StageFailed, StageRestarting, VideoLlamaError, from_wire
from videollama_server.answers.answering import Listener
from videollama_server.answers.outbox import Outbox, Sender, flush_each
from videollama_server.direct.channel import DirectChannel
from videollama_server.http2.channel import OK, STREAM_INFER, Channel
from videollama_server.processes import is_alive

logger = logging.getLogger(__name__)
_STAGE = contract.LANGUAGE_MODEL.name
STOP_SECONDS = 0.25  # between two `stop` requests for one generation
_RESTARTING = f"stage {_STAGE}: it is restarting; send the request again"
DIED = f"stage {_STAGE}: its process died while it answered and is being restarted; send the request again"
SENDING_THREADS = 3  # beside the loop's own
TOGETHER = 4  # senders that one thread flushes in turn: to wake a thread takes as long as a few of them
CHECK_SECONDS = 0.05  # between two checks whether the process of a silent stage is alive


class Running(Protocol):
    """A request that the language model is answering."""

    process: int | None  # id of the stage's process; None if it has none or is not visible
    last_message: float  # when the stage last sent a message, time.monotonic()

    def on_death(self) -> None: ...


class AnswerLoop:
    """The event loop of all answers, in a thread of its own.

    Args:
        address: unix:PATH or HOST:PORT of the server's own gRPC endpoint; None if it is not used.
        language_model: path of the language model's own socket; None if it has none.
    """

    def __init__(self, address: str | None, language_model: str | None = None) -> None:
        self._loop = loop_factory()()
        self.channel = Channel(address or "")
        self.direct = DirectChannel(language_model or "", self._loop)
        self._running: set[Running] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking = False
        self._ready: list[Sender] = []
        self._outbox = Outbox("senders", SENDING_THREADS)
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self.channel.close()
        self.direct.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))  # lets the connections and tasks end
        self._loop.close()

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` in the loop's thread. Callable from any thread; keeps the order of calls; does nothing after `close`."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Run `work` in the loop's thread after a delay. Callable from any thread."""

        def begin() -> None:
            self._loop.call_later(seconds, work)

        self.call(begin)

    def close(self) -> None:
        """Stop the loop and wait for its thread; no listener is called afterwards."""
        self.call(self._loop.stop)
        self._thread.join()
        self._outbox.close()

    # --- in the loop's thread ---

    def flush_soon(self, sender: Sender) -> None:
        """Flush a sender, which waits for Triton. Of many in one turn, all but the first few are flushed in other threads."""
        if not self._ready:
            self._loop.call_soon(self._flush)
        self._ready.append(sender)

    def _flush(self) -> None:
        ready, self._ready = self._ready, []
        for begin in range(TOGETHER, len(ready), TOGETHER):
            self._outbox.put(*ready[begin : begin + TOGETHER])
        flush_each(ready[:TOGETHER])

    def watch(self, running: Running) -> None:
        """Call `on_death` if the process dies, until `forget` is called."""
        self._running.add(running)
        if not self._checking:
            self._checking = True
            self._loop.call_later(CHECK_SECONDS, self._check)

    def forget(self, running: Running) -> None:
        self._running.discard(running)

    def send(self, message: bytes, listener: "GrpcGeneration | _NullListener") -> None:
        if self.channel.open_at_once(STREAM_INFER, message, listener):
            return
        task = self._loop.create_task(self._send(message, listener))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, message: bytes, listener: "GrpcGeneration | _NullListener") -> None:
        try:
            await self.channel.open(STREAM_INFER, message, listener)
        except OSError as error:
            listener.on_end(-1, str(error))

    def _check(self) -> None:
        """Check the processes of silent requests: a stage that was killed neither ends nor fails its calls."""
        now = time.monotonic()
        alive: dict[int, bool] = {}
        for running in list(self._running):
            if running.process is not None and now - running.last_message >= CHECK_SECONDS:
                if running.process not in alive:
                    alive[running.process] = is_alive(running.process)
                if not alive[running.process]:
                    running.on_death()
        self._checking = bool(self._running)
        if self._checking:
            self._loop.call_later(CHECK_SECONDS, self._check)


class _NullListener:
    """Ignores everything: the responses to a `stop` request, and what follows the end of a generation."""

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_ids(self, ids: list[int]) -> None: ...

    def on_cached_tokens(self, count: int) -> None: ...

    def on_end(self, *_: object) -> None: ...


_NULL_LISTENER = _NullListener()


class DirectGeneration:
    """One request to the language model over its own socket."""

    def __init__(self, loop: AnswerLoop, message: bytes, listener: Listener) -> None:
        self._loop, self._message = loop, message
        self._listener: Listener = listener
        self._number = loop.direct.number()
        self._ended = False

    def start(self) -> None:
        """Send the request in the calling thread: waking the loop's thread would take longer than sending."""
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
            listener, self._listener = self._listener, _NULL_LISTENER  # breaks the reference cycle
            listener.on_end(error)

    def on_lost(self) -> None:
        self.on_end(StageDied(DIED))

    def stop(self) -> None:
        self._ended, self._listener = True, _NULL_LISTENER
        self._loop.direct.stop(self._number)


class GrpcGeneration:
    """One request to the language model over gRPC; the listener of its own call.

    Args:
        message: serialized request with the prompt.
        stop_message: makes the serialized request that stops it.
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
        self.last_message = time.monotonic()
        self._ended = False

    def start(self) -> None:
        self._loop.call(self._open)

    def _open(self) -> None:
        message, self._message = self._message, b""
        self._loop.watch(self)
        self._loop.send(message, self)

    def on_messages(self, messages: list[bytes]) -> None:
        self.last_message = time.monotonic()
        if self._ended:
            return
        ids: list[int] = []
        error: VideoLlamaError | None = None
        for message in messages:
            stream_response = service_pb2.ModelStreamInferResponse.FromString(message)
            if stream_response.error_message:
                error = from_wire(stream_response.error_message)
                break
            response = stream_response.infer_response
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
            listener, self._listener = self._listener, _NULL_LISTENER  # breaks the reference cycle
            listener.on_end(error)

    def stop(self) -> None:
        """Send the `stop` request of the TensorRT-LLM contract, repeatedly until the generation has ended.

        One that overtakes its request names an id that is not yet known, and is lost.
        """
        if not self._ended:
            self._loop.send(self._stop_message(), _NULL_LISTENER)
            self._loop.later(STOP_SECONDS, self.stop)
