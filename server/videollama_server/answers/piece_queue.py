"""The pieces of one answer on their way to its caller."""

import threading
from abc import ABC, abstractmethod
from functools import partial

from videollama_server.answers.answering import Piece
from videollama_server.answers.generation import AnswerLoop


class PieceQueue(ABC):
    """Sends pieces in order, without making the loop wait; those that arrive during a transmission leave together after it.

    `transmit` and `refuse` are called in any thread, but never in two at the same time.
    """

    def __init__(self, loop: AnswerLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        self._is_busy = False  # waits for its turn, or is being flushed; for ever after an error

    @abstractmethod
    def transmit(self, piece: Piece) -> None: ...

    @abstractmethod
    def refuse(self, error: Exception) -> None: ...

    @abstractmethod
    def on_unsent(self, error: Exception) -> None:
        """A piece could not be transmitted; nothing more will be. Called in the loop's thread."""

    def put(self, piece: Piece, at_once: bool = False) -> None:
        """Send a piece: at the end of the loop's turn, or `at_once`. Only in the loop's thread."""
        with self._lock:
            self._pieces.append(piece)
            was_busy, self._is_busy = self._is_busy, True
        if was_busy:
            return
        if at_once:
            self.flush()
        else:
            self._loop.flush_soon(self)

    def put_error(self, error: Exception) -> None:
        """Send an error, after the pieces. Callable from any thread."""
        with self._lock:
            self._error = error
            was_busy, self._is_busy = self._is_busy, True
        if not was_busy:
            self.flush()

    def flush(self) -> None:
        while True:
            with self._lock:
                pieces, self._pieces = self._pieces, []
                error, self._error = self._error, None  # whose traceback holds the media
                if not pieces and error is None:
                    self._is_busy = False
                    return
            try:
                if pieces:
                    self.transmit(_joined(pieces))
                if error is not None:
                    self.refuse(error)
                    return
            except Exception as failure:
                self._loop.call(partial(self.on_unsent, failure))
                return


def _joined(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    text, ids = "".join(piece.text for piece in pieces), [index for piece in pieces for index in piece.output_ids]
    return Piece(text, ids, pieces[-1].summary)
