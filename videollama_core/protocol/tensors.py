"""What a tensor and a stage are, and whether a tensor that came is one of the contract's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.limits import Limit

_ITEM_BYTES = {"UINT8": 1, "BOOL": 1, "INT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8}


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # Triton's name without the TYPE_ prefix, STRING for bytes
    dims: tuple[int, ...]
    meaning: str
    optional: bool = False
    most: Limit | None = None  # values of all, where a dimension is dynamic

    @property
    def wire_dtype(self) -> str:
        """The KServe v2 name of the type: STRING travels as BYTES."""
        return "BYTES" if self.dtype == "STRING" else self.dtype

    def as_optional(self) -> "Tensor":
        return replace(self, optional=True)

    def batched(self) -> "Tensor":
        """With a leading dimension of 1, as a request carries it."""
        return replace(self, dims=(1, *self.dims), optional=False)

    def check(self, shape: Sequence[int], datatype: str | None = None, data_bytes: int | None = None) -> None:
        """Raises: InvalidRequest unless it may be read. To be asked before anything is made of a tensor.

        Args:
            datatype, data_bytes: KServe's name of its type and the size of its data, where they have come with it.
        """
        if datatype not in (None, self.wire_dtype):
            raise InvalidRequest(f"{self.name} is {datatype!r}; wanted {self.wire_dtype}")
        fits = len(shape) == len(self.dims) and all(
            found >= 0 and wanted in (-1, found) for found, wanted in zip(shape, self.dims, strict=True)
        )
        if not fits:
            raise InvalidRequest(f"{self.name} has the shape {list(shape[:9])}; wanted {list(self.dims)}")
        count = prod(shape)
        if self.most is not None:
            self.most.check(count, self.name)
        if data_bytes is None:
            return
        size = _ITEM_BYTES.get(self.dtype)  # a string comes with its length: 4 bytes before it
        if data_bytes != count * size if size else data_bytes < count * 4:
            raise InvalidRequest(
                f"{self.name} has {data_bytes} bytes of data; they do not fill its shape {list(shape)}"
            )


@dataclass(frozen=True)
class Stage:
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool = False
    max_batch_size: int = 0

    def input(self, name: str) -> Tensor:
        """Raises: InvalidRequest where the stage has no such input."""
        found = self._inputs.get(name)
        if found is None:
            raise InvalidRequest(
                f"{self.name} has no tensor {name[:99]!r}; it takes {', '.join(one.name for one in self.inputs)}"
            )
        return found

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.inputs}

    @cached_property
    def _on_the_wire(self) -> dict[str, Tensor]:
        """With the batch dimension where the stage has one."""
        return {name: one.batched() if self.max_batch_size else one for name, one in self._inputs.items()}

    def check_input(
        self, name: str, shape: Sequence[int], datatype: str | None = None, data_bytes: int | None = None
    ) -> None:
        """`Tensor.check` of an input as it lies on the wire, with the batch dimension where the stage has one."""
        self.input(name)  # is there
        self._on_the_wire[name].check(shape, datatype, data_bytes)
