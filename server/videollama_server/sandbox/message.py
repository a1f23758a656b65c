"""The format of a request and its answer in the memory (memfd) that both processes share: a JSON head, then bytes.

The answer comes from a process that hostile media may have taken over, so nothing in it is trusted.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from videollama_core.protocol import limits
from videollama_core.protocol.errors import StageFailed, from_wire
from videollama_core.protocol.messages import EncoderInputs

_LENGTH = 8  # size of the field that holds the head's length, in bytes
_MOST_HEAD = 2**20
_ARRAYS = {"frames": np.uint8, "filterbank": np.float32, "index": np.int64, "time": np.float64}


def time_limit(kind: str) -> limits.Limit:
    """The processor-time limit for decoding media of a kind."""
    return limits.PICTURE_SECONDS if kind == "image" else limits.DECODE_SECONDS


def write(memory: int, head: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Replace the content with a message.

    Args:
        parts: bytes or contiguous arrays, written after the head.
    """
    packed = json.dumps(head).encode()
    os.ftruncate(memory, 0)
    os.lseek(memory, 0, os.SEEK_SET)
    for part in (len(packed).to_bytes(_LENGTH, "little"), packed, *parts):
        view = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
        while view:
            view = view[os.write(memory, view) :]


def read_head(memory: int) -> tuple[dict[str, Any], int]:
    """Return the head and the offset of the bytes after it. Raises: ValueError."""
    length = int.from_bytes(os.pread(memory, _LENGTH, 0), "little")
    if length > _MOST_HEAD:
        raise ValueError(f"the head has {length} bytes")
    head = json.loads(os.pread(memory, length, _LENGTH))
    if not isinstance(head, dict):
        raise ValueError("the head is not an object")
    return head, _LENGTH + length


def read_bytes(memory: int, offset: int, size: int) -> bytes:
    """Raises: ValueError if there are fewer bytes."""
    parts = []
    while size:
        part = os.pread(memory, size, offset)
        if not part:
            raise ValueError("the message is truncated")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_answer(memory: int, inputs: EncoderInputs) -> None:
    """Replace the request with its answer."""
    arrays = [np.ascontiguousarray(getattr(inputs, name), dtype) for name, dtype in _ARRAYS.items()]
    write(memory, {"shapes": [array.shape for array in arrays]}, arrays)


def read_answer(memory: int) -> EncoderInputs:
    """Read and validate an answer. Raises: the error that it holds; StageFailed if it is malformed."""
    try:
        head, offset = read_head(memory)
        if "error" in head:
            raise from_wire(str(head["error"]))
        remaining = os.fstat(memory).st_size - offset
        arrays = {}
        for (name, dtype), shape in zip(_ARRAYS.items(), head["shapes"], strict=True):
            size = int(np.prod([int(side) for side in shape], dtype=object)) * np.dtype(dtype).itemsize
            if not 0 <= size <= remaining or min(shape) < 0:
                raise ValueError(f"{name} has the shape {shape}")
            # Read, not mapped: the other process could truncate the file under a mapping.
            arrays[name] = np.empty(shape, dtype)
            _fill(memory, arrays[name], offset)
            offset, remaining = offset + size, remaining - size
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise StageFailed(f"the process that decoded the media gave an invalid answer: {error}") from error
    return EncoderInputs(**arrays)


def _fill(memory: int, array: np.ndarray, offset: int) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        count = os.preadv(memory, [view], offset)
        if not count:
            raise ValueError("the answer is truncated")
        view, offset = view[count:], offset + count
