"""The encoders on TensorRT-RTX engines, which `vl2 convert --engine tensorrt-rtx` built on some machine.

Kernels are compiled when a shape first comes, before it is answered (eager), so that later calls of the shape take one time;
the library records its own CUDA graph per shape, and nothing else records one. Compiled kernels are kept beside the engine.
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
MAX_SHAPES = 8  # whose buffers are kept per engine, at the addresses that a CUDA graph was recorded with


def gpu_capability() -> float | None:
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return float(f"{major}.{minor}")


class RtxEngine:
    """One engine with one context, called from one thread."""

    def __init__(self, path: Path, graph: Graph, runtime_cache: Path) -> None:
        """Raises: ArtifactMismatch on another GPU or version, or without a driver."""
        version = rtx_version()
        facts = check_rtx_sidecar(path, version, gpu_capability())
        import tensorrt_rtx as trt

        said = rtx_logger()
        said.start()
        self._runtime = trt.Runtime(said)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ArtifactMismatch(
                f"{path} cannot be loaded by TensorRT-RTX {version}: {'; '.join(said.errors)}. It needs an NVIDIA GPU and a driver "
                "for CUDA 13 (nvidia-smi tells); or convert with --engine onnx"
            )
        self.graph, self._dtypes = graph, {name: DTYPES[found] for name, found in facts["dtypes"].items()}
        self._cache_file = runtime_cache
        self._places: dict[tuple[Any, ...], dict[str, Tensor]] = {}  # shapes of the inputs -> buffers of all tensors
        settings = self._engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = settings.create_runtime_cache()
        if runtime_cache.is_file() and not self._cache.deserialize(runtime_cache.read_bytes()):
            logger.info("%s is of another GPU, driver or version; kernels are compiled again", runtime_cache)
        settings.set_runtime_cache(self._cache)
        self._settings = settings
        self._context = self._engine.create_execution_context(settings)

    def __call__(self, *values: Tensor) -> Tensor:
        """Inputs in the graph's order -> its one output on the GPU, which the next call of the shape writes over."""
        stream = torch.cuda.current_stream()
        key = tuple(tuple(value.shape) for value in values)
        is_new = key not in self._places
        if is_new and len(self._places) >= MAX_SHAPES:
            self._places.pop(next(iter(self._places)))
        self._set_shapes(key, stream)
        if is_new:
            self._places[key] = self._buffers(key)
        places = self._places[key]
        for name, value in zip(self.graph.inputs, values, strict=True):
            places[name].copy_(value, non_blocking=True)
        for name, place in places.items():
            self._context.set_tensor_address(name, place.data_ptr())
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise ArtifactMismatch(f"TensorRT-RTX refused to run {self.graph.name}: {'; '.join(rtx_logger().errors)}")
        if is_new:
            self._keep_kernels()
        return places[self.graph.outputs[0]]

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

    def _keep_kernels(self) -> None:
        """Whole or not at all; a folder that cannot be written costs the next start its time, and nothing else."""
        beside = self._cache_file.with_suffix(f".{os.getpid()}.new")
        try:
            beside.write_bytes(bytes(self._cache.serialize()))
            os.replace(beside, self._cache_file)
        except OSError as error:
            logger.warning("%s cannot be kept: %s", self._cache_file, error)


class RtxEncoders:
    """Engines of one bundle, on a stream of their own. Media tokens are float32, as PyTorch's decoder and vLLM's stage take them."""

    def __init__(self, bundle: Bundle) -> None:
        def load(graph: Graph) -> RtxEngine:
            return RtxEngine(bundle.root / engine_path(graph.name), graph, bundle.root / runtime_cache_path(graph.name))

        self._vision, self._connector = load(VISION_ENCODER), load(CONNECTOR)
        self._audio = load(AUDIO_ENCODER) if bundle.config.audio else None
        self._stream = torch.cuda.Stream()
        self.frames_per_run = frames_per_run(bundle.config.vision, on_gpu=True)

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> Tensor:
        take_over(self._stream)
        with torch.cuda.stream(self._stream):
            found = self._vision(torch.from_numpy(frames))
        return hand_over(found, self._stream)

    @torch.inference_mode()
    def connect(self, features: Tensor, frame_index: np.ndarray) -> Tensor:
        take_over(self._stream, features)
        with torch.cuda.stream(self._stream):
            found = self._connector(features, torch.from_numpy(frame_index)).to(torch.float32, copy=True)
        return hand_over(found, self._stream)

    @torch.inference_mode()
    def encode_audio(self, filterbank: np.ndarray) -> Tensor:
        assert self._audio is not None
        with torch.cuda.stream(self._stream):
            found = self._audio(torch.from_numpy(filterbank[None]))[0].to(torch.float32, copy=True)
        return hand_over(found, self._stream)
