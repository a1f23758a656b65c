"""Between Triton's Python backend and the hub: tensors in, tensors out, errors as `Kind: message`.

A stage's model.py subclasses `PythonStage` (one response per request) or `DecoupledStage` (any number) and holds no
logic. `triton_python_backend_utils` exists only inside Triton's stub process (or as a small real class in tests).
"""

import faulthandler
import json
import locale
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from videollama_core.engines.bundle import Bundle
from videollama_core.protocol.contract import MAX_REQUESTS, RUNNING_METRIC, Stage, Tensor
from videollama_core.protocol.errors import InvalidRequest, Overloaded, StageFailed, VideoLlamaError

logger = logging.getLogger(__name__)
CANCEL_SECONDS = 0.005
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
    """Arrays by name, None for an absent optional one. Raises: InvalidRequest if a tensor is missing.

    Args:
        keep: copy them; otherwise they lie in shared memory that goes back when `execute` returns.
    """
    found = {}
    for tensor in stage.inputs:
        value = pb.get_input_tensor_by_name(request, tensor.name)
        if value is None and not tensor.optional:
            raise InvalidRequest(f"tensor {tensor.name} is missing; it holds: {tensor.meaning}")
        array = None if value is None else value.as_numpy()
        found[tensor.name] = array.copy() if keep and array is not None else array
    return found


def scalar(array: np.ndarray | None, name: str) -> Any:
    """The one value of a tensor as a Python value, None if absent. Raises: InvalidRequest unless it holds exactly one."""
    if array is None:
        return None
    if array.size != 1:
        raise InvalidRequest(f"{name} has {array.size} values; exactly one was wanted")
    return array.reshape(-1)[0].item() if array.dtype != np.object_ else text(array.reshape(-1)[0], name)


def text(value: Any, name: str) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8: {error}") from error


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
        error = StageFailed(f"stage {stage.name}: {type(error).__name__}: {error}")
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
        log_to_stderr(self.contract.name)
        # Triton's stub starts Python without a locale, in ASCII whatever the environment says; libraries read files of theirs.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        try:
            self.load(args)
        except VideoLlamaError as error:
            raise pb.TritonModelException(error.to_wire()) from error

    def execute(self, requests: list[Any]) -> list[Any] | None:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return respond(self.contract, self.run(**read_inputs(self.contract, request)))
        except Exception as error:
            return refuse(self.contract, error)


class Reply:
    """Where a decoupled stage answers one request; exactly one final message leaves it."""

    def __init__(self, stage: Stage, request: Any) -> None:
        self._stage = stage
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self.ended = False
        self._cancelled, self._asked = False, -math.inf

    def is_cancelled(self) -> bool:
        """As it was at most CANCEL_SECONDS ago: to ask the server costs a round trip to its process (0.05 ms)."""
        now = time.monotonic()
        if not self._cancelled and now - self._asked >= CANCEL_SECONDS:
            self._asked, self._cancelled = now, self._sender.is_cancelled()
        return self._cancelled

    def send(self, values: dict[str, Any], last: bool = False) -> None:
        self._send(respond(self._stage, values), last)

    def fail(self, error: Exception) -> None:
        self._send(refuse(self._stage, error), last=True)

    def end(self) -> None:
        with self._lock:
            if not self.ended:
                self.ended = True
                self._sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _send(self, response: Any, last: bool) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = last
            self._sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


class DecoupledStage(PythonStage):
    """A stage with any number of responses; each request runs in a thread of its own."""

    def handle(self, inputs: dict[str, Any], reply: Reply) -> None:
        """Answer one request, in a thread of its own. What it raises ends the reply."""

    def handle_at_once(self, inputs: dict[str, Any], request_id: str, reply: Reply) -> bool:
        """Answer a request that needs no thread; True if it did."""
        return False

    def initialize(self, args: dict[str, str]) -> None:
        self._threads = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix=self.contract.name)
        self._running = 0
        self._lock = threading.Lock()
        self._family = pb.MetricFamily(
            name=RUNNING_METRIC, description="Requests being answered", kind=pb.MetricFamily.GAUGE
        )
        self._gauge = self._family.Metric(labels={"model": self.contract.name})
        self._gauge.set(0)
        super().initialize(args)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            reply = Reply(self.contract, request)
            try:
                inputs = read_inputs(self.contract, request, keep=True)
                if self.handle_at_once(inputs, request.request_id(), reply):
                    continue
                self._enter()
            except Exception as error:
                reply.fail(error)
            else:
                self._threads.submit(self._run, inputs, reply)

    def _enter(self) -> None:
        with self._lock:
            if self._running >= MAX_REQUESTS:
                raise Overloaded(f"{self._running} requests are being answered already; try again later")
            self._running += 1
            self._tell_running()

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            self._tell_running()

    def _tell_running(self) -> None:
        if self._gauge is not None:
            self._gauge.set(self._running)

    def _run(self, inputs: dict[str, Any], reply: Reply) -> None:
        try:
            self.handle(inputs, reply)
        except Exception as error:
            reply.fail(error)
        finally:
            reply.end()
            self._leave()

    def finalize(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:  # a metric that outlives finalize crashes the stub
            self._gauge = None
            self._family = None


def log_to_stderr(stage: str) -> None:
    """The server's log is the stub's stderr; where a stage crashes, its threads' stacks are there too."""
    faulthandler.enable()
    logging.basicConfig(
        level=os.environ.get("VL2_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format=f"%(asctime)s {stage} %(levelname)s %(message)s",
    )
