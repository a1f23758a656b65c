"""The adapter between Triton's Python backend and the core: tensors in, tensors out, errors as `Kind: message`.

A stage's model.py subclasses `PythonStage` (one response per request) or `DecoupledStage` (any number) and holds no
logic. `triton_python_backend_utils` exists only inside Triton's stub process (or as a small real class in tests).
"""

import faulthandler
import json
import locale
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from videollama_core.engines.bundle import Bundle
from videollama_core.protocol.contract import Stage, Tensor
from videollama_core.protocol.errors import (
    NO_SHARED_MEMORY,
    InvalidRequest,
    Overloaded,
    StageFailed,
    VideoLlamaError,
    from_wire,
)
from videollama_core.protocol.limits import WORD_CHARACTERS
from videollama_core.protocol.questions import read_text
from videollama_core.telemetry.logs import log_to_stderr
from videollama_server.machine.stub_health import StubHealth

logger = logging.getLogger(__name__)
_NUMPY = {
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP32": np.float32,
    "FP64": np.float64,
    "BOOL": np.bool_,
    "STRING": np.object_,
}


def bundle_of(args: dict[str, str]) -> Bundle:
    """Open the bundle that contains a stage, as build/NAME/model_repository/STAGE."""
    return Bundle.open(Path(args["model_repository"]).parents[1])


def parameter(args: dict[str, str], name: str) -> str:
    """The value of a `parameters` entry in the stage's config.pbtxt."""
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def read_inputs(stage: Stage, request: Any, keep: bool = False) -> dict[str, Any]:
    """Return arrays by name, None for an absent optional input.

    Args:
        keep: copy them; otherwise they are in shared memory, which is valid only until `execute` returns.
    Raises: InvalidRequest if a tensor is missing, or violates the contract.
    """
    sent = {value.name(): value for value in request.inputs()}
    arrays: dict[str, Any] = {}
    for tensor in stage.inputs:
        value = sent.get(tensor.name)
        if value is None:
            if not tensor.optional:
                raise InvalidRequest(f"tensor {tensor.name} is missing; it holds: {tensor.meaning}")
            arrays[tensor.name] = None
            continue
        array = value.as_numpy()
        stage.check_input(tensor.name, array.shape)  # before it is used
        arrays[tensor.name] = array.copy() if keep else array
    return arrays


def scalar(array: np.ndarray | None, name: str) -> Any:
    """Return the single value of a tensor, None if absent. Raises: InvalidRequest unless it holds exactly one."""
    if array is None:
        return None
    if array.dtype == np.object_:
        return read_text(string(array, name), name, WORD_CHARACTERS)
    return _single(array, name).item()


def string(array: np.ndarray, name: str) -> bytes:
    """Return the single string of a tensor. Raises: InvalidRequest unless it holds exactly one."""
    return bytes(_single(array, name))


def _single(array: np.ndarray, name: str) -> Any:
    if array.size != 1:
        raise InvalidRequest(f"{name} has {array.size} values; wanted exactly one")
    return array.reshape(-1)[0]


def to_array(tensor: Tensor, value: Any) -> np.ndarray:
    """Convert a value to a contiguous array of the contract's dtype."""
    dtype = _NUMPY[tensor.dtype]
    if tensor.dtype == "FP32" and isinstance(value, np.ndarray) and value.dtype == np.float16:
        dtype = np.float16  # media tokens of a half-precision engine stay as they are, as assemble.py declares them
    return np.ascontiguousarray(np.asarray(value, dtype=dtype))


def to_tensor(tensor: Tensor, value: Any) -> Any:
    """Make a Triton tensor from an array or a list or, without a copy, from a PyTorch tensor (DLPack) or a Triton tensor."""
    if isinstance(value, pb.Tensor):
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return pb.Tensor.from_dlpack(tensor.name, value)
    return pb.Tensor(tensor.name, to_array(tensor, value))


def respond(stage: Stage, values: dict[str, Any]) -> Any:
    """Make a response from values by output name; missing outputs are left out."""
    return pb.InferenceResponse(
        [to_tensor(tensor, values[tensor.name]) for tensor in stage.outputs if tensor.name in values]
    )


def refuse(stage: Stage, error: Exception) -> Any:
    """Make the response for an error; unexpected exceptions are logged with their traceback."""
    if not isinstance(error, VideoLlamaError):
        logger.error("stage %s", stage.name, exc_info=error)
        is_out_of_memory = str(from_wire(str(error))) == NO_SHARED_MEMORY  # Triton could not allocate an array
        error = (
            Overloaded(NO_SHARED_MEMORY)
            if is_out_of_memory
            else StageFailed(f"stage {stage.name}: {type(error).__name__}: {error}")
        )
    code = getattr(pb.TritonError, error.triton_code)
    return pb.InferenceResponse(error=pb.TritonError(error.to_wire(), code))


class PythonStage:
    """A stage with one response per request."""

    contract: Stage
    # Takes the contract's inputs by name (None for an absent optional one), and returns values of its outputs by name.
    run: Callable[..., dict[str, Any]]

    def load(self, args: dict[str, str]) -> None:
        """Load the stage, once, before the first request. An error keeps the server from becoming ready."""

    def initialize(self, args: dict[str, str]) -> None:
        faulthandler.enable()  # stderr goes to the server's log, which then has the stacks of a stage that crashes
        name = self.contract.name
        log_to_stderr(os.environ.get("VL2_LOG_LEVEL", "INFO"), f"%(asctime)s {name} %(levelname)s %(message)s", name)
        # Triton's stub starts Python without a locale, in ASCII, whatever the environment says; libraries read UTF-8 files.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        self.health = StubHealth(self.contract.decoupled)
        try:
            self.load(args)
        except VideoLlamaError as error:
            raise pb.TritonModelException(error.to_wire()) from error

    def finalize(self) -> None:
        """End the process at once; subclasses clean up first.

        The stub would wait for its health thread (0.3 s) and tear the interpreter down, one instance after the other.
        """
        logging.shutdown()
        os._exit(0)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        with self.health.working():
            return self.answer_all(requests)

    def answer_all(self, requests: list[Any]) -> list[Any] | None:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return respond(self.contract, self.run(**read_inputs(self.contract, request)))
        except Exception as error:
            return refuse(self.contract, error)
