"""The KV cache of all slots in one array that grows on demand: a step reads it in place and writes one position per slot.

A graph takes the keys of a layer as one array of B rows, so the slots of a decoding step must be the first rows. Rows are
swapped when the set of decoding slots changes, which is once per request that joins or leaves, not at every step.
"""

import numpy as np

_GROW = 64  # positions by which the array grows


class SlotCache:
    """float32 [layers, 2, rows, H, capacity, d]; a slot has one row, of which `length` positions are written.

    The others are kept at zero: a step multiplies them by a weight of 0, which would not cancel NaN.
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
        """Positions per row, written or not."""
        return self._values.shape[4]

    def reserve(self, slots: list[int], count: int) -> None:
        """Make room for `count` more positions in each of `slots`."""
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
        """Move `slots` to the first rows, in any order. Returns: the row of each."""
        count = len(slots)
        members = set(slots)
        free = [row for row in range(count) if self._slot[row] not in members]
        for slot in slots:
            if self._row[slot] >= count:
                self._swap(self._row[slot], free.pop())
        return [self._row[slot] for slot in slots]

    def _swap(self, first: int, second: int) -> None:
        reach = max(self.length[self._slot[row]] for row in (first, second))
        for array in (self._values[:, :, :, :, :reach].swapaxes(0, 2), self._visible[:, :reach]):
            array[[first, second]] = array[[second, first]]
        self._slot[first], self._slot[second] = self._slot[second], self._slot[first]
        self._row[self._slot[first]], self._row[self._slot[second]] = first, second

    def past(self, begin: int, count: int) -> list[np.ndarray]:
        """Views of the keys, then the values, of each layer: [count, H, capacity, d]."""
        return [
            self._values[layer, which, begin : begin + count] for layer in range(self._shape[0]) for which in (0, 1)
        ]

    def row(self, slot: int) -> int:
        """The current row of a slot."""
        return self._row[slot]

    def visible(self, slot: int) -> np.ndarray:
        """bool [length]: positions to which later ones may attend."""
        return self._visible[self._row[slot], : self.length[slot]]

    def append(self, slot: int, values: np.ndarray, visible: np.ndarray) -> None:
        """Append values [layers, 2, H, S, d] and visible [S]; `reserve` must have made room."""
        row, begin = self._row[slot], self.length[slot]
        end = begin + len(visible)
        self._values[:, :, row, :, begin:end] = values
        self._visible[row, begin:end] = visible
        self.length[slot] = end

    def read(self, slot: int) -> np.ndarray:
        """A copy of the written positions: [layers, 2, H, length, d]."""
        return self._values[:, :, self._row[slot], :, : self.length[slot]].copy()

    def free(self, slot: int) -> None:
        """Empty a slot."""
        if self.length[slot]:
            self._values[:, :, self._row[slot], :, : self.length[slot]] = 0
            self.length[slot] = 0
