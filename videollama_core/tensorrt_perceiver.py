"""The encoders on TensorRT 10.14 engines, which `vl2 convert --engine tensorrt` built.

PyTorch brings the buffers, the stream and the recording of CUDA graphs; `tensorrt` brings the kernels. Nothing leaves the
GPU between tower and connector. The media tokens do leave it: the response cache keeps tensors of the CPU alone, and 10 MB
once per new video cost less than encoding it again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videollama_core.bundle import Bundle, engine_path
from videollama_core.errors import ArtifactMismatch
from videollama_core.graphs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph
from videollama_core.torch_perceiver import Replayed

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int64": torch.int64,
}


def describe_machine() -> dict[str, Any]:
    """What an engine is bound to. Raises: ArtifactMismatch where there is no GPU or no TensorRT."""
    try:
        import tensorrt
    except ImportError as error:
        raise ArtifactMismatch(
            "the package tensorrt is missing: engines are built and run in the pinned container (docker/), or convert with "
            "--engine torch"
        ) from error
    if not torch.cuda.is_available():
        raise ArtifactMismatch("no GPU can be used here: nvidia-smi tells why; or convert with --engine onnx")
    major, minor = torch.cuda.get_device_capability()
    return {
        "tensorrt": tensorrt.__version__,
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda,
    }


def check_sidecar(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The facts written beside an engine. Raises: ArtifactMismatch unless it was built for this machine."""
    sidecar = path.with_suffix(".json")
    try:
        found = json.loads(sidecar.read_text("utf-8"))
        built_on = found["machine"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactMismatch(f"{sidecar} is missing or damaged ({error!r}); convert again on this machine") from error
    # The name of the GPU may differ within one capability; TensorRT then warns of lost speed, and runs.
    for key in ("tensorrt", "capability"):
        if built_on.get(key) != machine[key]:
            raise ArtifactMismatch(
                f"{path} was built for {key} {built_on.get(key)} ({built_on.get('gpu')}), and this machine has {machine[key]} "
                f"({machine['gpu']}): convert again here, in the container that serves"
            )
    return found


class TensorRtEngine:
    """One engine with one execution context; called from one thread."""

    def __init__(self, path: Path, graph: Graph, machine: dict[str, Any]) -> None:
        import tensorrt

        self._facts = check_sidecar(path, machine)
        logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self._runtime = tensorrt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactMismatch(f"{path} cannot be loaded by TensorRT {machine['tensorrt']}: convert again here")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        if sorted(names) != sorted((*graph.inputs, *graph.outputs)):
            raise ArtifactMismatch(f"{path} has the tensors {names}; wanted {(*graph.inputs, *graph.outputs)}")
        self._graph = graph
        self._context = self._engine.create_execution_context()

    def _profile_for(self, inputs: dict[str, Tensor]) -> int:
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
        raise ArtifactMismatch(f"no profile of {self._graph.name} takes {shapes}; convert again")

    def __call__(self, *values: Tensor) -> Tensor:
        """Inputs in the graph's order, on the GPU -> its one output."""
        inputs = dict(zip(self._graph.inputs, values, strict=True))
        stream = torch.cuda.current_stream()
        self._context.set_optimization_profile_async(self._profile_for(inputs), stream.cuda_stream)
        for name, value in inputs.items():
            wanted = _DTYPES[self._facts["dtypes"][name]]
            value = value.to(wanted).contiguous()
            inputs[name] = value  # kept alive until the work is enqueued
            self._context.set_input_shape(name, tuple(value.shape))
            self._context.set_tensor_address(name, value.data_ptr())
        (name,) = self._graph.outputs
        output = torch.empty(
            tuple(self._context.get_tensor_shape(name)), dtype=_DTYPES[self._facts["dtypes"][name]], device="cuda"
        )
        self._context.set_tensor_address(name, output.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ArtifactMismatch(f"TensorRT refused to run {self._graph.name}; its log says why")
        return output


class TensorRtPerceiver:
    """Engines of one bundle. Media tokens are float16: the language model's type on TensorRT-LLM (assemble.py)."""

    def __init__(self, bundle: Bundle) -> None:
        machine, device = describe_machine(), torch.device("cuda")

        def load(graph: Graph) -> TensorRtEngine:
            return TensorRtEngine(bundle.root / engine_path(graph.name), graph, machine)

        self._vision, self._connector = load(VISION_ENCODER), load(CONNECTOR)
        self._see = Replayed(lambda frames, index: self._connector(self._vision(frames), index), device)
        self._hear = Replayed(load(AUDIO_ENCODER), device) if bundle.config.audio else None

    @torch.inference_mode()
    def see(self, frames: np.ndarray, frame_index: np.ndarray) -> np.ndarray:
        return self._see(_pinned(frames), _pinned(frame_index)).half().cpu().numpy()

    @torch.inference_mode()
    def hear(self, filterbank: np.ndarray) -> np.ndarray:
        assert self._hear is not None
        return self._hear(_pinned(filterbank[None]))[0].half().cpu().numpy()


def _pinned(array: np.ndarray) -> Tensor:
    """A copy in memory that the GPU reads without the host."""
    return torch.from_numpy(np.ascontiguousarray(array)).pin_memory()
