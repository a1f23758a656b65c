"""The encoders on TensorRT-RTX engines, which `vl2 convert --engine tensorrt-rtx` built on any machine.

Kernels are compiled at the first call with a shape, before it returns (eager), so that all later calls with it are equally
fast. The library records a CUDA graph per shape itself; none is recorded here. Compiled kernels are stored beside the engine.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videollama_core.engines.bundle import Bundle, engine_path, runtime_cache_path
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph, frames_per_run
from videollama_core.engines.tensorrt_encoders import DTYPES
from videollama_core.engines.tensorrt_rtx import check_rtx_sidecar, rtx_logger, rtx_version
from videollama_core.engines.torch_device import hand_over, take_over
from videollama_core.protocol.errors import ArtifactMismatch

logger = logging.getLogger(__name__)
MAX_SHAPES = 8  # per engine whose buffers are kept, at the addresses that a CUDA graph was recorded with


def gpu_capability() -> float | None:
    """Compute capability of the GPU, such as 8.9; None if there is no usable GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return float(f"{major}.{minor}")


class RtxEngine:
    """One engine with one context, called from one thread."""

    def __init__(self, path: Path, graph: Graph, runtime_cache: Path) -> None:
        """Raises: ArtifactMismatch for another GPU or version, or without a driver."""
        version = rtx_version()
        facts = check_rtx_sidecar(path, version, gpu_capability())
        import tensorrt_rtx as trt

        error_log = rtx_logger()
        error_log.start()
        self._runtime = trt.Runtime(error_log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactMismatch(
                f"{path} cannot be loaded by TensorRT-RTX {version}: {'; '.join(error_log.errors)}. It needs an NVIDIA GPU and a driver "
                "for CUDA 13 (check nvidia-smi); or convert with --engine onnx"
            )
        self.graph, self._dtypes = graph, {name: DTYPES[dtype] for name, dtype in facts["dtypes"].items()}
        self._cache_file = runtime_cache
        self._tensors: dict[tuple[Any, ...], dict[str, Tensor]] = {}  # shapes of the inputs -> buffers of all tensors
        settings = self._engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = settings.create_runtime_cache()
        if runtime_cache.is_file() and not self._cache.deserialize(runtime_cache.read_bytes()):
            logger.info("%s belongs to another GPU, driver or version; kernels are compiled again", runtime_cache)
        settings.set_runtime_cache(self._cache)
        self._settings = settings
        self._context = self._engine.create_execution_context(settings)

    def __call__(self, *values: Tensor) -> Tensor:
        """Inputs in the graph's order -> its one output on the GPU, which the next call with the same shapes overwrites."""
        stream = torch.cuda.current_stream()
        key = tuple(tuple(value.shape) for value in values)
        is_new = key not in self._tensors
        if is_new and len(self._tensors) >= MAX_SHAPES:
            self._tensors.pop(next(iter(self._tensors)))
        self._set_shapes(key, stream)
        if is_new:
            self._tensors[key] = self._buffers(key)
        tensors = self._tensors[key]
        for name, value in zip(self.graph.inputs, values, strict=True):
            tensors[name].copy_(value, non_blocking=True)
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ArtifactMismatch(f"TensorRT-RTX failed to run {self.graph.name}: {'; '.join(rtx_logger().errors)}")
        if is_new:
            self._store_kernels()
        return tensors[self.graph.outputs[0]]

    def _set_shapes(self, key: tuple[tuple[int, ...], ...], stream: Any) -> None:
        shapes = dict(zip(self.graph.inputs, key, strict=True))
        self._context.set_optimization_profile_async(self._profile_for(shapes), stream.cuda_stream)
        for name, shape in shapes.items():
            self._context.set_input_shape(name, shape)

    def _profile_for(self, shapes: dict[str, tuple[int, ...]]) -> int:
        for number in range(self._engine.num_optimization_profiles):
            bounds = {name: self._engine.get_tensor_profile_shape(name, number) for name in shapes}
            if all(
                low <= size <= high
                for name, shape in shapes.items()
                for low, size, high in zip(bounds[name][0], shape, bounds[name][2], strict=True)
            ):
                return number
        raise ArtifactMismatch(f"no profile of {self.graph.name} takes {shapes}; convert again")

    def _buffers(self, key: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
        shapes = dict(zip(self.graph.inputs, key, strict=True))
        shapes |= {name: tuple(self._context.get_tensor_shape(name)) for name in self.graph.outputs}
        return {name: torch.empty(shape, dtype=self._dtypes[name], device="cuda") for name, shape in shapes.items()}

    def _store_kernels(self) -> None:
        """Write the cache atomically; if the folder is not writable, the next start only compiles again."""
        temporary = self._cache_file.with_suffix(f".{os.getpid()}.new")
        try:
            temporary.write_bytes(bytes(self._cache.serialize()))
            os.replace(temporary, self._cache_file)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._cache_file, error)


class RtxEncoders:
    """Engines of one bundle, on their own stream. Media tokens are float32, which PyTorch's decoder and vLLM's stage take."""

    def __init__(self, bundle: Bundle) -> None:
        def load(graph: Graph) -> RtxEngine:
            return RtxEngine(bundle.root / engine_path(graph.name), graph, bundle.root / runtime_cache_path(graph.name))

        self._vision, self._connector = load(VISION_ENCODER), load(CONNECTOR)
        self._audio = load(AUDIO_ENCODER) if bundle.config.audio else None
        self._stream = torch.cuda.Stream()
        self.frames_per_run, self.shares_runs = frames_per_run(bundle.config.vision, on_gpu=True), True

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> Tensor:
        take_over(self._stream)
        with torch.cuda.stream(self._stream):
            features = self._vision(torch.from_numpy(frames))
        return hand_over(features, self._stream)

    @torch.inference_mode()
    def connect(self, features: Tensor, frame_index: np.ndarray) -> Tensor:
        take_over(self._stream, features)
        with torch.cuda.stream(self._stream):
            tokens = self._connector(features, torch.from_numpy(frame_index)).to(torch.float32, copy=True)
        return hand_over(tokens, self._stream)

    @torch.inference_mode()
    def encode_audio(self, filterbank: np.ndarray) -> Tensor:
        assert self._audio is not None
        with torch.cuda.stream(self._stream):
            tokens = self._audio(torch.from_numpy(filterbank[None]))[0].to(torch.float32, copy=True)
        return hand_over(tokens, self._stream)
