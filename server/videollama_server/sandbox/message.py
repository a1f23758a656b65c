"""What a request and its answer look like in the memory (memfd) that both processes hold: a JSON head, then bytes.

The answer comes from a process that hostile media may have taken over: nothing in it is believed.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from videollama_core.protocol import limits
from videollama_core.protocol.errors import StageFailed, from_wire
from videollama_core.protocol.messages import EncoderInputs

_LENGTH = 8  # bytes of the head's length
_MOST_HEAD = 2**20
_ARRAYS = {"frames": np.uint8, "filterbank": np.float32, "index": np.int64, "time": np.float64}


def time_limit(kind: str) -> limits.Limit:
    """Of decoding media of a kind."""
    return limits.PICTURE_SECONDS if kind == "image" else limits.DECODE_SECONDS


def write(memory: int, head: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Put a message in place of what is there. `parts`: bytes, or arrays in one piece."""
    packed = json.dumps(head).encode()
    os.ftruncate(memory, 0)
    os.lseek(memory, 0, os.SEEK_SET)
    for part in (len(packed).to_bytes(_LENGTH, "little"), packed, *parts):
        view = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
        while view:
            view = view[os.write(memory, view) :]


def read_head(memory: int) -> tuple[dict[str, Any], int]:
    """The head, and where the bytes begin. Raises: ValueError."""
    length = int.from_bytes(os.pread(memory, _LENGTH, 0), "little")
    if length > _MOST_HEAD:
        raise ValueError(f"a head of {length} bytes")
    head = json.loads(os.pread(memory, length, _LENGTH))
    if not isinstance(head, dict):
        raise ValueError("the head is no object")
    return head, _LENGTH + length


def read_bytes(memory: int, offset: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.pread(memory, size, offset)
        if not part:
            raise ValueError("the message is cut off")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_answer(memory: int, found: EncoderInputs) -> None:
    arrays = [np.ascontiguousarray(getattr(found, name), dtype) for name, dtype in _ARRAYS.items()]
    write(memory, {"shapes": [array.shape for array in arrays]}, arrays)


def read_answer(memory: int) -> EncoderInputs:
    """Raises: the error that the answer holds; StageFailed if it is none of ours."""
    try:
        head, offset = read_head(memory)
        if "error" in head:
            raise from_wire(str(head["error"]))
        left = os.fstat(memory).st_size - offset
        arrays = {}
        for (name, dtype), shape in zip(_ARRAYS.items(), head["shapes"], strict=True):
            size = int(np.prod([int(side) for side in shape], dtype=object)) * np.dtype(dtype).itemsize
            if not 0 <= size <= left or min(shape) < 0:
                raise ValueError(f"{name} is {shape}")
            # Read and not mapped: the other side could cut the file off under a mapping.
            arrays[name] = np.empty(shape, dtype)
            _fill(memory, arrays[name], offset)
            offset, left = offset + size, left - size
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise StageFailed(f"the process that decoded the media gave no answer that can be read: {error}") from error
    return EncoderInputs(**arrays)


def _fill(memory: int, array: np.ndarray, offset: int) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        count = os.preadv(memory, [view], offset)
        if not count:
            raise ValueError("the answer is cut off")
        view, offset = view[count:], offset + count
