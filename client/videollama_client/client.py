"""The client for ordinary code. `ask` is `stream`, joined."""

import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from videollama_client import transport
from videollama_client.wire import AnswerReader, Source, Video, build_ping, build_question
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import Cancelled, ServerUnreachable, StageFailed, StageRestarting, VideoLlamaError
from videollama_core.protocol.messages import Answer

SILENCE_SECONDS = 1.0  # after so long without a message, ask whether the process that has the request still lives
PING_SECONDS = 10.0
RESEND_SECONDS = 0.2
RESTART_SECONDS = 15.0  # how long a request that was not accepted is sent again while the entry is being started again


@dataclass(frozen=True)
class Heartbeat:
    """A ping of the entry: when it began, and which process answered or what went wrong."""

    began: float = -math.inf
    process: str | None = None
    error: VideoLlamaError | None = None

    def counts_for(self, asked: float) -> bool:
        """Whether it tells about a request that has been silent for SILENCE_SECONDS at `asked`: it was sent later."""
        return self.began >= asked - SILENCE_SECONDS

    def check(self, process: str | None) -> None:
        """Raises: StageFailed unless the process that has a request still answers; StageRestarting if none has it yet."""
        kind = StageRestarting if process is None else StageFailed
        if self.error is not None:
            raise kind(f"stage {ENTRY.name} does not answer ({self.error}); send the request again") from self.error
        if self.process != process:
            raise kind(f"stage {ENTRY.name}: its process died while it answered; send the request again")


class AnswerStream:
    """Pieces of an answer as they come. After the last one, `answer` is the whole."""

    def __init__(self, client: "Client", request_id: str, call: Callable[[], Any], timeout: float | None) -> None:
        self.request_id = request_id
        self._client, self._new_call = client, call
        self._reader = AnswerReader()
        self._cancelled = False
        self._deadline = time.monotonic() + min(RESTART_SECONDS, timeout or RESTART_SECONDS)
        self._send()

    def _send(self) -> None:
        with transport.translated(self._client.address):
            self._call = self._new_call()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._receive, args=(self._call, self._messages), daemon=True).start()

    @staticmethod
    def _receive(call: Any, messages: "queue.SimpleQueue[Any]") -> None:
        try:
            for message in call:
                messages.put(message)
            messages.put(None)
        except grpc.RpcError as error:
            messages.put(error)

    def __iter__(self) -> Iterator[str]:
        try:
            while self._reader.answer is None:
                try:
                    message = self._next_message()
                    if message is None:
                        break
                    piece = self._reader.read(message)
                except VideoLlamaError as error:
                    if self._cancelled:
                        raise Cancelled("the request was cancelled") from error
                    taken = self._reader.process is not None
                    if taken or not isinstance(error, StageRestarting) or time.monotonic() > self._deadline:
                        raise
                    time.sleep(RESEND_SECONDS)
                    if not self._reader.ended:
                        self._call.cancel()
                    self._reader.ended = False
                    self._send()
                    continue
                if piece:
                    yield piece
            self._reader.finish()
        finally:
            if self._reader.ended:
                self._wait_for_end()
            else:
                self._call.cancel()
            self._client._forget(self.request_id)

    def _wait_for_end(self) -> None:
        """Until the server has closed the stream, which it does at once: a channel that is closed before cancels it."""
        try:
            while not isinstance(self._messages.get(timeout=SILENCE_SECONDS), (type(None), grpc.RpcError)):
                pass
        except queue.Empty:
            pass  # whatever holds it up, the answer is whole or its error raised

    def _next_message(self) -> Any:
        heartbeat = None
        while True:
            try:
                message = self._messages.get(timeout=SILENCE_SECONDS)
            except queue.Empty:
                if heartbeat is not None:  # a second of silence later: what a slow process sent before it has arrived
                    heartbeat.check(self._reader.process)
                heartbeat = self._client._check_heartbeat()
                continue
            if isinstance(message, grpc.RpcError):
                error = transport.translate(message, self._client.address)
                if isinstance(error, ServerUnreachable) and self._client._met and self._reader.process is None:
                    raise StageRestarting(str(error)) from message  # it was there a moment ago
                raise error from message
            self._client._met = True
            return message

    def cancel(self) -> None:
        """Stop the answer; the server frees its place at once. Iterating on raises Cancelled."""
        self._cancelled = True
        if not self._reader.ended:
            self._call.cancel()

    @property
    def answer(self) -> Answer:
        """The whole answer; reads what is left of it."""
        if self._reader.answer is None:
            for _ in self:
                pass
        return self._reader.finish()


class Client:
    """A connection to one server; safe to use from several threads.

    Args:
        address: host:port of the server's gRPC port.
        timeout: seconds that a request may take unless it names its own; None waits as long as the server works.
    """

    def __init__(self, address: str = "localhost:8001", timeout: float | None = None) -> None:
        self.address, self._timeout = address, timeout
        self._channel = transport.open_channel(address)
        self._stub = transport.Stub(self._channel)
        self._active: dict[str, AnswerStream] = {}
        self._met = False  # the server has answered before
        self._heartbeat, self._heartbeat_lock = Heartbeat(), threading.Lock()

    def stream(
        self,
        question: str | Sequence[dict[str, str]],
        *,
        video: Video | None = None,
        image: Source | None = None,
        audio: Source | None = None,
        with_audio: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AnswerStream:
        """Ask, and iterate over the pieces of text as they come.

        Args:
            question: one user turn, or a list of {role, content} messages; media belongs to the first.
            video: path, folder of frames, bytes, uint8 [T, H, W, 3], or a list of frames or image paths.
            image: path, bytes or uint8 [H, W, 3].
            audio: path or bytes of a sound file; 30 s of it are heard, from `start` on.
            with_audio: the video's sound track is heard too.
            timeout: seconds until DeadlineExceeded.
            options: start and end (seconds of the video or sound), max_new_tokens, temperature (0 is greedy), top_p, top_k,
                seed, repetition_penalty, stop (strings). None means the checkpoint's own default. vcd_alpha above 0 turns
                visual contrastive decoding on, with vcd_beta (0.1) and vcd_noise_step (500) where they are given.
        Raises: an error of videollama_core.protocol.errors, here or while iterating.
        """
        request_id = request_id or uuid.uuid4().hex
        media = {"video": video, "image": image, "audio": audio, "with_audio": with_audio}
        request = build_question(question, request_id, media | options)
        timeout = timeout or self._timeout
        call = lambda: self._stub.ModelStreamInfer(iter([request]), timeout=timeout)  # noqa: E731
        stream = AnswerStream(self, request_id, call, timeout)
        self._active[request_id] = stream
        return stream

    def ask(self, question: str | Sequence[dict[str, str]], **arguments: Any) -> Answer:
        """The whole answer; arguments are those of `stream`."""
        return self.stream(question, **arguments).answer

    def cancel(self, request_id: str) -> bool:
        """Cancel a request that another thread waits for; False if it is not running."""
        stream = self._active.get(request_id)
        if stream is not None:
            stream.cancel()
        return stream is not None

    def health(self) -> bool:
        """True if the server answers questions."""
        try:
            with transport.translated(self.address):
                self._met = self._stub.ModelReady(transport.READY(name=ENTRY.name), timeout=5).ready
                return self._met
        except VideoLlamaError:
            return False

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Raises: ServerUnreachable after `timeout` seconds without a ready server."""
        deadline = time.monotonic() + timeout
        while not self.health():
            if time.monotonic() >= deadline:
                raise ServerUnreachable(
                    f"no server is ready at {self.address} after {timeout:g} s; start one with vl2 serve"
                )
            time.sleep(0.1)

    def _check_heartbeat(self) -> Heartbeat:
        """One ping for all requests that wait in silence: they must not be what keeps the server busy."""
        asked = time.monotonic()
        with self._heartbeat_lock:
            if not self._heartbeat.counts_for(asked):
                self._heartbeat = self._ping()
            return self._heartbeat

    def _ping(self) -> Heartbeat:
        began, reader = time.monotonic(), AnswerReader()
        try:
            with transport.translated(self.address):
                for message in self._stub.ModelStreamInfer(iter([build_ping()]), timeout=PING_SECONDS):
                    reader.read(message)
        except VideoLlamaError as error:
            return Heartbeat(began, error=error)
        return Heartbeat(began, reader.process)

    def _forget(self, request_id: str) -> None:
        self._active.pop(request_id, None)

    def close(self) -> None:
        for stream in list(self._active.values()):
            stream.cancel()
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
