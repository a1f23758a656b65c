"""An engine runs one converted graph: name -> array in, name -> array out. ONNX Runtime is the CPU's."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from videollama_core.protocol.errors import ArtifactMismatch

Arrays = dict[str, np.ndarray]


class Engine(Protocol):
    def run(self, inputs: Arrays) -> Arrays:
        """Shapes and dtypes are the artefact's."""
        ...


class OnnxEngine:
    """A graph on ONNX Runtime's CPU provider.

    Raises: ArtifactMismatch if the file cannot be loaded or its tensors are not those named.
    """

    def __init__(self, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int = 0) -> None:
        import onnxruntime  # not there where TensorRT or PyTorch runs the graphs

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        # Several stages share the cores: a thread that waits must not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no public root
            raise ArtifactMismatch(f"{path} cannot be loaded: {error}") from error
        found = (
            tuple(item.name for item in self._session.get_inputs()),
            tuple(o.name for o in self._session.get_outputs()),
        )
        if found != (inputs, outputs):
            raise ArtifactMismatch(f"{path} has the tensors {found}; wanted {(inputs, outputs)}: convert again")
        self._outputs = list(outputs)
        self.floats = {item.name for item in self._session.get_inputs() if item.type == "tensor(float)"}

    def run(self, inputs: Arrays) -> Arrays:
        """Pixels may come as uint8 where the graph takes float32, which is what it would make of them."""
        typed = {
            name: array.astype(np.float32) if array.dtype == np.uint8 and name in self.floats else array
            for name, array in inputs.items()
        }
        return dict(zip(self._outputs, self._session.run(self._outputs, typed), strict=True))
