"""Running one converted graph: arrays by name in, arrays by name out; and ONNX Runtime, the engine for CPUs."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from videollama_core.engines.bundle import Bundle
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph, frames_per_run
from videollama_core.protocol.errors import ArtifactMismatch

Arrays = dict[str, np.ndarray]


class Engine(Protocol):
    """Runs one converted graph."""

    def run(self, inputs: Arrays) -> Arrays:
        """Run the graph; shapes and dtypes are those of the artifact."""
        ...


class OnnxEngine:
    """A graph on ONNX Runtime's CPU provider.

    Raises: ArtifactMismatch if the file cannot be loaded, or its tensors are not `inputs` and `outputs`.
    """

    def __init__(self, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int = 0) -> None:
        import onnxruntime  # not installed where TensorRT or PyTorch runs the encoders

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        # Several stages share the cores, so waiting threads must not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no public root
            raise ArtifactMismatch(f"{path} cannot be loaded: {error}") from error
        names = (
            tuple(item.name for item in self._session.get_inputs()),
            tuple(item.name for item in self._session.get_outputs()),
        )
        if names != (inputs, outputs):
            raise ArtifactMismatch(f"{path} has the tensors {names}; expected {(inputs, outputs)}: convert again")
        self._outputs = list(outputs)
        self.floats = {item.name for item in self._session.get_inputs() if item.type == "tensor(float)"}

    def run(self, inputs: Arrays) -> Arrays:
        """Run the graph; pixels may be uint8 where it takes float32, to which they are cast."""
        typed = {
            name: array.astype(np.float32) if array.dtype == np.uint8 and name in self.floats else array
            for name, array in inputs.items()
        }
        return dict(zip(self._outputs, self._session.run(self._outputs, typed), strict=True))


class OnnxEncoders:
    """The encoders' converted graphs."""

    def __init__(self, bundle: Bundle) -> None:
        def load(graph: Graph) -> OnnxEngine:
            return OnnxEngine(bundle.graph(graph.name), graph.inputs, graph.outputs)

        self._vision, self._connector = load(VISION_ENCODER), load(CONNECTOR)
        self._audio = load(AUDIO_ENCODER) if bundle.config.audio else None
        self.frames_per_run, self.shares_runs = frames_per_run(bundle.config.vision, on_gpu=False), False

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        if frames.dtype != np.uint8 and "frames" not in self._vision.floats:
            raise ArtifactMismatch(
                "this bundle predates vcd_alpha: its vision graph takes uint8 frames, which cannot hold noise; convert again"
            )
        return self._vision.run({"frames": frames})["vision_features"]

    def connect(self, features: np.ndarray, frame_index: np.ndarray) -> np.ndarray:
        return self._connector.run({"vision_features": features, "frame_index": frame_index})["media_steps"]

    def encode_audio(self, filterbank: np.ndarray) -> np.ndarray:
        assert self._audio is not None
        return self._audio.run({"filterbank": filterbank[None]})["audio_tokens"][0]
