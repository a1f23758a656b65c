"""How much of a prompt is prefilled between two decoding steps, so that neither delays the other for long."""

LEAST = 32  # positions: fewer take about as long, because all weights are read anyway
_PATIENCE = 2.0  # the most time of a chunk, in decoding steps
_UNNOTICED = 0.01  # seconds that a chunk may always take: small chunks of a tiny model cost more than they save
_NEW = 0.3  # weight of the latest measurement


class ChunkSizes:
    """Chunk sizes from the recent durations of chunks and decoding steps."""

    def __init__(self, most: int) -> None:
        """most: positions of a chunk while no request decodes."""
        self._most, self._least = most, min(LEAST, most)
        self._position = self._step = 0.0  # seconds of each; 0: unknown yet

    def next(self, while_others_decode: bool) -> int:
        """Positions of the next chunk; while others decode, a power of two."""
        if not while_others_decode:
            return self._most
        if not (self._position and self._step):
            return self._least
        affordable = int(max(_PATIENCE * self._step, _UNNOTICED) / self._position)
        return min(max(1 << max(affordable, 1).bit_length() - 1, self._least), self._most)

    def took_chunk(self, positions: int, seconds: float) -> None:
        """Record how long a chunk took."""
        if positions >= self._least:  # the short rest of a prompt is not representative
            self._position = _averaged(self._position, seconds / positions)

    def took_step(self, seconds: float) -> None:
        """Record how long a decoding step took."""
        self._step = _averaged(self._step, seconds)


def _averaged(before: float, now: float) -> float:
    return now if not before else before + _NEW * (now - before)
