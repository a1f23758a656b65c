"""The encoders on PyTorch: on a GPU if there is one, else on the CPU. The modules are those from which graphs are exported.

Features stay on the GPU between tower and connector, and from the second call on a shape is replayed as a CUDA graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from videollama_core.checkpoint.fill import fill
from videollama_core.checkpoint.shards import Shards
from videollama_core.engines.bundle import ENCODER_WEIGHTS, Bundle
from videollama_core.engines.specs import frames_per_run
from videollama_core.engines.torch_device import pick_device, pick_dtype
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.connector import Connector
from videollama_core.model.vision import VisionEncoder

M = TypeVar("M", bound=nn.Module)
MAX_GRAPHS = 8  # kept per function; each holds its activations


def load_torch_encoders(bundle: Bundle, device: torch.device | None = None) -> "TorchEncoders":
    """The encoders of a bundle that was converted with --engine torch. Raises: ArtifactMismatch, CheckpointMismatch."""
    config, weights = bundle.config, Shards.of_file(bundle.root / ENCODER_WEIGHTS)

    def load(part: str, module: M) -> M:
        fill(module, weights.sources(f"{part}."), part)
        return module.to(device or pick_device(), pick_dtype(bundle.dtype))

    return TorchEncoders(
        load("vision", VisionEncoder(config.vision, config.pixels)),
        load("connector", Connector(config)),
        load("audio", AudioEncoder(config.audio, config.language.width)) if config.audio else None,
    )


class TorchEncoders:
    """Modules on one device, in one dtype."""

    def __init__(self, vision: VisionEncoder, connector: nn.Module, audio: nn.Module | None = None) -> None:
        self.vision, self.connector, self.audio = vision, connector, audio
        first = next(vision.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.shares_runs = self.device.type == "cuda"
        self.frames_per_run = frames_per_run(vision.config, on_gpu=self.shares_runs)
        self._encode_frames = CudaGraphCache(self.vision, self.device)
        self._connect = CudaGraphCache(self.connector, self.device)
        self._encode_audio = CudaGraphCache(self._audio_tokens, self.device)

    def _audio_tokens(self, filterbank: Tensor) -> Tensor:
        assert self.audio is not None
        return self.audio(filterbank.to(self.dtype))

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> Tensor:
        return self._encode_frames(torch.from_numpy(frames))

    @torch.inference_mode()
    def connect(self, features: Tensor, frame_index: np.ndarray) -> Tensor:
        return self._connect(features, torch.from_numpy(frame_index)).to(torch.float32, copy=True)

    @torch.inference_mode()
    def encode_audio(self, filterbank: np.ndarray) -> Tensor:
        return self._encode_audio(torch.from_numpy(filterbank)[None])[0].to(torch.float32, copy=True)


class CudaGraphCache:
    """A function of tensors; on a GPU its kernels are recorded per shape, and replayed without the host.

    The first call with a shape runs the function normally (and warms it up), the second records. A replay overwrites the
    previous result for the same shape: copy a result to keep it.

    Args:
        fresh: makes another such function to record, if its state must not change afterwards; default: the same function.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        device: torch.device,
        fresh: Callable[[], Callable[..., Tensor]] | None = None,
    ) -> None:
        self._function, self._device = function, device
        self._fresh = fresh or (lambda: function)
        self._graphs: dict[tuple[Any, ...], _Recorded | None] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return self._function(*(value.to(self._device) for value in inputs))
        key = tuple((tuple(value.shape), value.dtype) for value in inputs)
        if key not in self._graphs:
            if len(self._graphs) < MAX_GRAPHS:
                self._graphs[key] = None
            return self._function(*(value.to(self._device) for value in inputs))
        recorded = self._graphs[key] or self._record(key, inputs)
        for buffer, value in zip(recorded.inputs, inputs, strict=True):
            buffer.copy_(value, non_blocking=True)
        recorded.graph.replay()
        return recorded.output

    def _record(self, key: tuple[Any, ...], inputs: tuple[Tensor, ...]) -> "_Recorded":
        buffers, function = [value.to(self._device) for value in inputs], self._fresh()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function(*buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = function(*buffers)
        recorded = self._graphs[key] = _Recorded(graph, buffers, output, function)
        return recorded


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # its input buffers
    output: Tensor
    function: Callable[..., Tensor]  # kept alive, because the graph uses its memory
