"""One gRPC call of the client for ordinary code, made and read in a thread of its own."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from videollama_client import transport

MESSAGES_AHEAD = 256  # that are read before anybody wants them; a caller who is slower slows the server down
_LOOK_SECONDS = 0.01


class Call:
    """Ctrl-C, which interrupts the main thread, in the midst of gRPC's code would leave a channel that never closes: the
    main thread waits on a queue alone. The thread knows this object and not the stream, which may be dropped meanwhile.
    """

    def __init__(self, make: Callable[[], Any], address: str) -> None:
        self._make, self._address = make, address
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._unwanted = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        end: Exception | None = None
        try:
            with transport.translated(self._address):
                self._call = call = self._make()
                if self._unwanted:
                    call.cancel()
                for message in call:
                    while self._messages.qsize() >= MESSAGES_AHEAD and not self._unwanted:
                        time.sleep(_LOOK_SECONDS)
                    self._messages.put(message)
        except Exception as error:
            end = error
        self._messages.put(end)

    def get(self, seconds: float) -> Any:
        """The next message; None at the end. Raises: queue.Empty after so long; what ended the call, VideoLlamaError."""
        message = self._messages.get(timeout=seconds)
        if message is None or isinstance(message, Exception):
            self._messages.put(message)  # for whoever asks again
        if isinstance(message, Exception):
            raise message
        return message

    def cancel(self) -> None:
        self._unwanted = True  # its thread looks at this when it has made the call
        call = self._call
        if call is not None:
            call.cancel()
