"""The encoders on TensorRT 10.14 engines, which `vl2 convert --engine tensorrt` built.

PyTorch provides the buffers, the stream and the capture of CUDA graphs; `tensorrt` provides the kernels. Features stay on
the GPU between tower and connector. Whether the media tokens do is set by the bundle (`vl2 convert --media-token-memory`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videollama_core.engines.bundle import Bundle, engine_path
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph, frames_per_run
from videollama_core.engines.torch_device import hand_over, take_over
from videollama_core.engines.torch_encoders import CudaGraphCache
from videollama_core.protocol.errors import ArtifactMismatch

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int64": torch.int64,
}


def describe_machine() -> dict[str, Any]:
    """Versions and GPU that an engine is bound to. Raises: ArtifactMismatch if there is no GPU or no TensorRT."""
    try:
        import tensorrt
    except ImportError as error:
        raise ArtifactMismatch(
            "the package tensorrt is missing: engines are built and run in the pinned container (docker/), or convert with "
            "--engine torch"
        ) from error
    if not torch.cuda.is_available():
        raise ArtifactMismatch("no GPU can be used here: check nvidia-smi, or convert with --engine onnx")
    major, minor = torch.cuda.get_device_capability()
    return {
        "tensorrt": tensorrt.__version__,
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda,
    }


def check_sidecar(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The content of an engine's sidecar. Raises: ArtifactMismatch unless the engine was built for this machine."""
    sidecar = path.with_suffix(".json")
    try:
        facts = json.loads(sidecar.read_text("utf-8"))
        built_on = facts["machine"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactMismatch(f"{sidecar} is missing or damaged ({error!r}); convert again on this machine") from error
    # The GPU's name may differ within one capability; TensorRT then warns about lower speed, and runs.
    for key in ("tensorrt", "capability"):
        if built_on.get(key) != machine[key]:
            raise ArtifactMismatch(
                f"{path} was built for {key} {built_on.get(key)} ({built_on.get('gpu')}), but this machine has {machine[key]} "
                f"({machine['gpu']}): convert again here, in the container that serves"
            )
    return facts


class TensorRtEngine:
    """One engine. Its executions take turns on one stream, so that they can share one block of scratch memory."""

    def __init__(self, path: Path, graph: Graph, machine: dict[str, Any]) -> None:
        import tensorrt

        facts = check_sidecar(path, machine)
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactMismatch(f"{path} cannot be loaded by TensorRT {machine['tensorrt']}: convert again here")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        if sorted(names) != sorted((*graph.inputs, *graph.outputs)):
            raise ArtifactMismatch(f"{path} has the tensors {names}; expected {(*graph.inputs, *graph.outputs)}")
        self.graph, self.dtypes = graph, {name: DTYPES[dtype] for name, dtype in facts["dtypes"].items()}
        self._scratch = torch.empty(self._engine.device_memory_size_v2, dtype=torch.uint8, device="cuda")

    def execution(self) -> "Execution":
        """A new execution; there may be any number: since TensorRT 10.0 contexts may share an optimization profile."""
        import tensorrt

        context = self._engine.create_execution_context(tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
        return Execution(self, context)

    def profile_for(self, inputs: dict[str, Tensor]) -> int:
        """Number of the optimization profile for some inputs. Raises: ArtifactMismatch if none fits their shapes."""
        for number in range(self._engine.num_optimization_profiles):
            bounds = {name: self._engine.get_tensor_profile_shape(name, number) for name in inputs}
            if all(
                len(value.shape) == len(bounds[name][0])
                and all(
                    low <= size <= high
                    for low, size, high in zip(bounds[name][0], value.shape, bounds[name][2], strict=True)
                )
                for name, value in inputs.items()
            ):
                return number
        shapes = {name: list(value.shape) for name, value in inputs.items()}
        raise ArtifactMismatch(f"no profile of {self.graph.name} takes {shapes}; convert again")


class Execution:
    """An engine with its own context, called from one thread.

    A recorded CUDA graph is valid only while its context keeps its shapes, so every CUDA graph records its own execution.
    """

    def __init__(self, engine: TensorRtEngine, context: Any) -> None:
        self._owner, self._context = engine, context
        self._shapes: dict[str, torch.Size] = {}

    def __call__(self, *values: Tensor) -> Tensor:
        """Inputs in the graph's order, on the GPU -> its one output."""
        graph, dtypes = self._owner.graph, self._owner.dtypes
        inputs = {
            name: value.to(dtypes[name]).contiguous() for name, value in zip(graph.inputs, values, strict=True)
        }  # kept alive until the work is enqueued
        stream = torch.cuda.current_stream()
        self._set_shapes(inputs, stream)
        for name, value in inputs.items():
            self._context.set_tensor_address(name, value.data_ptr())
        (name,) = graph.outputs
        output = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtypes[name], device="cuda")
        self._context.set_tensor_address(name, output.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ArtifactMismatch(f"TensorRT failed to run {graph.name}; see its log")
        return output

    def _set_shapes(self, inputs: dict[str, Tensor], stream: torch.cuda.Stream) -> None:
        shapes = {name: value.shape for name, value in inputs.items()}
        if shapes == self._shapes:  # a CUDA graph must record nothing but the computation
            return
        self._context.set_optimization_profile_async(self._owner.profile_for(inputs), stream.cuda_stream)
        for name, shape in shapes.items():
            self._context.set_input_shape(name, tuple(shape))
        self._shapes = shapes


class TensorRtEncoders:
    """Engines of one bundle, on their own stream: on CUDA's default stream TensorRT would synchronize with the host.

    Media tokens are float16: the language model's type on TensorRT-LLM (assemble.py).
    """

    def __init__(self, bundle: Bundle) -> None:
        machine, device = describe_machine(), torch.device("cuda")

        def load(graph: Graph) -> TensorRtEngine:
            return TensorRtEngine(bundle.root / engine_path(graph.name), graph, machine)

        self._stream = torch.cuda.Stream()
        self.frames_per_run, self.shares_runs = frames_per_run(bundle.config.vision, on_gpu=True), True
        vision_execution, connector_execution = load(VISION_ENCODER).execution, load(CONNECTOR).execution
        self._encode_frames = CudaGraphCache(vision_execution(), device, vision_execution)
        self._connect = CudaGraphCache(connector_execution(), device, connector_execution)
        if bundle.config.audio:
            audio_execution = load(AUDIO_ENCODER).execution
            self._encode_audio = CudaGraphCache(audio_execution(), device, audio_execution)

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> Tensor:
        take_over(self._stream)
        with torch.cuda.stream(self._stream):
            features = self._encode_frames(_pinned(frames))
        return hand_over(features, self._stream)

    @torch.inference_mode()
    def connect(self, features: Tensor, frame_index: np.ndarray) -> Tensor:
        take_over(self._stream, features)
        with torch.cuda.stream(self._stream):
            tokens = self._connect(features, _pinned(frame_index)).to(torch.float16, copy=True)
        return hand_over(tokens, self._stream)

    @torch.inference_mode()
    def encode_audio(self, filterbank: np.ndarray) -> Tensor:
        with torch.cuda.stream(self._stream):
            tokens = self._encode_audio(_pinned(filterbank[None]))[0].to(torch.float16, copy=True)
        return hand_over(tokens, self._stream)


def _pinned(array: np.ndarray) -> Tensor:
    """A copy in pinned memory, from which the GPU can copy asynchronously."""
    return torch.from_numpy(np.ascontiguousarray(array)).pin_memory()
