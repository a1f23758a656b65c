"""Tensors and stages as the contract defines them, and the check of a received tensor against its definition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.limits import Limit

_ITEM_BYTES = {"UINT8": 1, "BOOL": 1, "INT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8}


@dataclass(frozen=True)
class Tensor:
    """The definition of a tensor: its name, type, shape and meaning."""

    name: str
    dtype: str  # Triton's name without the TYPE_ prefix, STRING for bytes
    dims: tuple[int, ...]
    meaning: str
    optional: bool = False
    most: Limit | None = None  # on the total number of values, where a dimension is dynamic

    @cached_property
    def wire_dtype(self) -> str:
        """The KServe v2 name of the type: STRING travels as BYTES."""
        return "BYTES" if self.dtype == "STRING" else self.dtype

    def as_optional(self) -> "Tensor":
        return replace(self, optional=True)

    def batched(self) -> "Tensor":
        """With a leading dimension of 1, as a request carries it."""
        return replace(self, dims=(1, *self.dims), optional=False)

    def check(self, shape: Sequence[int], datatype: str | None = None, data_bytes: int | None = None) -> None:
        """Check what a request declares of a tensor; call this before its data is read.

        Args:
            datatype, data_bytes: KServe's name of its type and the size of its data, where the request has them.
        Raises: InvalidRequest.
        """
        if datatype is not None and datatype != self.wire_dtype:
            raise InvalidRequest(f"{self.name} is {datatype!r}; expected {self.wire_dtype}")
        count, fits = 1, len(shape) == len(self.dims)
        for size, dim in zip(shape, self.dims, strict=False):
            count, fits = count * size, fits and size >= 0 and dim in (-1, size)
        if not fits:
            raise InvalidRequest(f"{self.name} has the shape {list(shape[:9])}; expected {list(self.dims)}")
        if self.most is not None:
            self.most.check(count, self.name)
        if data_bytes is None:
            return
        item_bytes = _ITEM_BYTES.get(self.dtype)  # None for strings: each has a prefix of 4 bytes, its length
        if data_bytes != count * item_bytes if item_bytes else data_bytes < count * 4:
            raise InvalidRequest(
                f"{self.name} has {data_bytes} bytes of data, which do not match its shape {list(shape)}"
            )


@dataclass(frozen=True)
class Stage:
    """The definition of a Triton model: its inputs and outputs."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool = False
    max_batch_size: int = 0

    def input(self, name: str) -> Tensor:
        """Raises: InvalidRequest if the stage has no such input."""
        tensor = self._inputs.get(name)
        if tensor is None:
            raise InvalidRequest(
                f"{self.name} has no tensor {name[:99]!r}; it takes {', '.join(each.name for each in self.inputs)}"
            )
        return tensor

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.inputs}

    @cached_property
    def _on_the_wire(self) -> dict[str, Tensor]:
        """With the batch dimension where the stage has one."""
        return {name: tensor.batched() if self.max_batch_size else tensor for name, tensor in self._inputs.items()}

    def check_input(
        self, name: str, shape: Sequence[int], datatype: str | None = None, data_bytes: int | None = None
    ) -> None:
        """`Tensor.check` of an input on the wire, with the batch dimension where the stage has one. Raises: InvalidRequest."""
        self.input(name)  # raises if there is none
        self._on_the_wire[name].check(shape, datatype, data_bytes)
