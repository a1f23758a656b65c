"""Keys and values of all slots in one array that grows with them: a step reads them where they lie, and writes one position each.

A graph takes the keys of a layer as one array of B rows, so the slots of a decoding step must be the first rows. Rows change
places when other slots are asked for, which is once for each request that comes or goes, and not at every step.
"""

import numpy as np

_GROW = 64  # positions by which the array grows


class SlotCache:
    """float32 [layers, 2, rows, H, capacity, d]; a slot has a row, and of it `length` positions are written.

    The others are zero: a step multiplies them by a weight of zero, which makes nothing of any number, but not of NaN.
    """

    def __init__(self, num_slots: int, layers: int, heads: int, width: int) -> None:
        self._shape = (layers, heads, width)
        self._values = np.zeros((layers, 2, 0, heads, 0, width), np.float32)
        self._visible = np.zeros((num_slots, 0), bool)  # by row
        self._row = list(range(num_slots))  # of each slot
        self._slot = list(range(num_slots))  # of each row
        self.length = [0] * num_slots  # of each slot

    @property
    def capacity(self) -> int:
        """Positions of each row, written or not."""
        return self._values.shape[4]

    def reserve(self, slots: list[int], count: int) -> None:
        """Make room for `count` more positions in each of some slots."""
        rows = max(self._values.shape[2], *(self._row[slot] + 1 for slot in slots))
        needed = max(*self.length, *(self.length[slot] + count for slot in slots))
        capacity = -(-needed // _GROW) * _GROW
        if rows == self._values.shape[2] and self.capacity // 2 < capacity <= self.capacity:
            return
        layers, heads, width = self._shape
        values = np.zeros((layers, 2, rows, heads, capacity, width), np.float32)
        visible = np.zeros((len(self._row), capacity), bool)
        for slot, length in enumerate(self.length):
            row = self._row[slot]
            if length:
                values[:, :, row, :, :length] = self._values[:, :, row, :, :length]
                visible[row, :length] = self._visible[row, :length]
        self._values, self._visible = values, visible

    def line_up(self, slots: list[int]) -> list[int]:
        """Give some slots the first rows, in any order. Returns: the row of each."""
        count = len(slots)
        asked = set(slots)
        free = [row for row in range(count) if self._slot[row] not in asked]
        for slot in slots:
            if self._row[slot] >= count:
                self._swap(self._row[slot], free.pop())
        return [self._row[slot] for slot in slots]

    def _swap(self, one: int, other: int) -> None:
        reach = max(self.length[self._slot[row]] for row in (one, other))
        for array in (self._values[:, :, :, :, :reach].swapaxes(0, 2), self._visible[:, :reach]):
            array[[one, other]] = array[[other, one]]
        self._slot[one], self._slot[other] = self._slot[other], self._slot[one]
        self._row[self._slot[one]], self._row[self._slot[other]] = one, other

    def past(self, begin: int, count: int) -> list[np.ndarray]:
        """Keys, then values, of each layer: [count, H, capacity, d], where they lie."""
        return [
            self._values[layer, which, begin : begin + count] for layer in range(self._shape[0]) for which in (0, 1)
        ]

    def row(self, slot: int) -> int:
        return self._row[slot]

    def visible(self, slot: int) -> np.ndarray:
        """bool [length]: the positions that later ones may look at."""
        return self._visible[self._row[slot], : self.length[slot]]

    def append(self, slot: int, values: np.ndarray, visible: np.ndarray) -> None:
        """values [layers, 2, H, S, d], visible [S]; there is room."""
        row, begin = self._row[slot], self.length[slot]
        end = begin + len(visible)
        self._values[:, :, row, :, begin:end] = values
        self._visible[row, begin:end] = visible
        self.length[slot] = end

    def read(self, slot: int) -> np.ndarray:
        """A copy of what is written: [layers, 2, H, length, d]."""
        return self._values[:, :, self._row[slot], :, : self.length[slot]].copy()

    def free(self, slot: int) -> None:
        if self.length[slot]:
            self._values[:, :, self._row[slot], :, : self.length[slot]] = 0
            self.length[slot] = 0
