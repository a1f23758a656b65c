"""Between Triton's Python backend and the hub: tensors in, tensors out, errors as `Kind: message`.

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
    """The bundle around a stage: build/NAME/model_repository/STAGE lies in it."""
    return Bundle.open(Path(args["model_repository"]).parents[1])


def parameter(args: dict[str, str], name: str) -> str:
    """A `parameters` entry of the stage's config.pbtxt."""
    return str(json.loads(args["model_config"])["parameters"][name]["string_value"])


def read_inputs(stage: Stage, request: Any, keep: bool = False) -> dict[str, Any]:
    """Arrays by name, None for an absent optional one. Raises: InvalidRequest if a tensor is missing, or not the contract's.

    Args:
        keep: copy them; otherwise they lie in shared memory that goes back when `execute` returns.
    """
    sent = {value.name(): value for value in request.inputs()}
    found: dict[str, Any] = {}
    for tensor in stage.inputs:
        value = sent.get(tensor.name)
        if value is None:
            if not tensor.optional:
                raise InvalidRequest(f"tensor {tensor.name} is missing; it holds: {tensor.meaning}")
            found[tensor.name] = None
            continue
        array = value.as_numpy()
        stage.check_input(tensor.name, array.shape)  # before anything is made of it
        found[tensor.name] = array.copy() if keep else array
    return found


def scalar(array: np.ndarray | None, name: str) -> Any:
    """The one value of a tensor as a Python value, None if absent. Raises: InvalidRequest unless it holds exactly one."""
    if array is None:
        return None
    if array.dtype == np.object_:
        return read_text(string(array, name), name, WORD_CHARACTERS)
    return _one(array, name).item()


def string(array: np.ndarray, name: str) -> bytes:
    """The one string of a tensor. Raises: InvalidRequest unless it holds exactly one."""
    return bytes(_one(array, name))


def _one(array: np.ndarray, name: str) -> Any:
    if array.size != 1:
        raise InvalidRequest(f"{name} has {array.size} values; exactly one was wanted")
    return array.reshape(-1)[0]


def to_array(tensor: Tensor, value: Any) -> np.ndarray:
    dtype = _NUMPY[tensor.dtype]
    if tensor.dtype == "FP32" and isinstance(value, np.ndarray) and value.dtype == np.float16:
        dtype = np.float16  # media tokens of an engine in half precision stay as they are (assemble.py types them so)
    return np.ascontiguousarray(np.asarray(value, dtype=dtype))


def to_tensor(tensor: Tensor, value: Any) -> Any:
    """Triton's tensor of an array or a list; of a tensor of PyTorch, where it lies, by DLPack; one of Triton's own as it is."""
    if isinstance(value, pb.Tensor):
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        return pb.Tensor.from_dlpack(tensor.name, value)
    return pb.Tensor(tensor.name, to_array(tensor, value))


def respond(stage: Stage, values: dict[str, Any]) -> Any:
    return pb.InferenceResponse(
        [to_tensor(tensor, values[tensor.name]) for tensor in stage.outputs if tensor.name in values]
    )


def refuse(stage: Stage, error: Exception) -> Any:
    """The response that an error becomes; anything unexpected is logged with its traceback."""
    if not isinstance(error, VideoLlamaError):
        logger.error("stage %s", stage.name, exc_info=error)
        no_room = str(from_wire(str(error))) == NO_SHARED_MEMORY  # for an array, in Triton's words
        error = (
            Overloaded(NO_SHARED_MEMORY)
            if no_room
            else StageFailed(f"stage {stage.name}: {type(error).__name__}: {error}")
        )
    code = getattr(pb.TritonError, error.triton_code)
    return pb.InferenceResponse(error=pb.TritonError(error.to_wire(), code))


class PythonStage:
    """A stage with one response per request."""

    contract: Stage
    # Arrays of the contract's inputs by name (None for an absent optional one) -> values of its outputs.
    run: Callable[..., dict[str, Any]]

    def load(self, args: dict[str, str]) -> None:
        """Once, before the first request. An error keeps the server from becoming ready."""

    def initialize(self, args: dict[str, str]) -> None:
        faulthandler.enable()  # the server's log is the stub's stderr: where a stage crashes, its threads' stacks are there too
        name = self.contract.name
        log_to_stderr(os.environ.get("VL2_LOG_LEVEL", "INFO"), f"%(asctime)s {name} %(levelname)s %(message)s", name)
        # Triton's stub starts Python without a locale, in ASCII whatever the environment says; libraries read files of theirs.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        self.health = StubHealth(self.contract.decoupled)
        try:
            self.load(args)
        except VideoLlamaError as error:
            raise pb.TritonModelException(error.to_wire()) from error

    def finalize(self) -> None:
        """The end of the process: subclasses put their own in order first.

        The stub would sleep out its health thread (0.3 s) and take the interpreter apart, one instance after the other.
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
