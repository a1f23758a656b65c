"""How much of a prompt goes in between two decoding steps: so much that neither waits long for the other."""

LEAST = 32  # positions: fewer cost about as much, for all weights are read either way
_PATIENCE = 2.0  # a chunk may take so many times as long as a decoding step
_NEW = 0.3  # weight of the last measurement


class ChunkSizes:
    """Sizes from what chunks and steps took lately."""

    def __init__(self, most: int) -> None:
        """most: positions of a chunk while nobody decodes."""
        self._most, self._least = most, min(LEAST, most)
        self._position = self._step = 0.0  # seconds of each; 0: not known yet

    def next(self, while_others_decode: bool) -> int:
        """Positions, while others decode a power of two."""
        if not while_others_decode:
            return self._most
        if not (self._position and self._step):
            return self._least
        wanted = int(_PATIENCE * self._step / self._position)
        return min(max(1 << max(wanted, 1).bit_length() - 1, self._least), self._most)

    def took_chunk(self, positions: int, seconds: float) -> None:
        if positions >= self._least:  # the last ones of a prompt say little
            self._position = _mixed(self._position, seconds / positions)

    def took_step(self, seconds: float) -> None:
        self._step = _mixed(self._step, seconds)


def _mixed(before: float, now: float) -> float:
    return now if not before else before + _NEW * (now - before)
