"""NVIDIA's TensorRT-RTX, a package on PyPI: its log, and whether an engine matches this machine.

Engines are built ahead of time for compute capabilities, on any machine (build_tensorrt_rtx.py); their kernels are compiled
on the serving GPU, and stored in a runtime cache beside them.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from videollama_core.protocol.errors import ArtifactMismatch


@cache
def rtx_logger() -> Any:
    """The logger of this process: the library keeps its first one and ignores others. `errors`: since the last `start`."""
    import tensorrt_rtx as trt

    class ErrorLog(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.start()

        def start(self, log: Callable[[str], None] = lambda line: None) -> None:
            self._pass_on = log
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            self._pass_on(message)

    return ErrorLog()


def rtx_version() -> str:
    """Raises: ArtifactMismatch if the package is missing."""
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise ArtifactMismatch(
            "the package tensorrt-rtx-cu13 is missing: pip install 'videollama2-service[tensorrt-rtx]', or convert with "
            "--engine torch"
        ) from error
    return str(tensorrt_rtx.__version__)


def check_rtx_sidecar(path: Path, version: str, capability: float | None) -> dict[str, Any]:
    """The content of an engine's sidecar.

    Args:
        version: of the installed TensorRT-RTX.
        capability: compute capability of this machine's GPU; None if there is no usable GPU.
    Raises: ArtifactMismatch for an engine of another version, or not built for this GPU.
    """
    sidecar = path.with_suffix(".json")
    try:
        facts = json.loads(sidecar.read_text("utf-8"))
        built_by, targets = facts["tensorrt_rtx"], [float(target) for target in facts["targets"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactMismatch(f"{sidecar} is missing or damaged ({error!r}); convert again") from error
    if built_by != version:
        raise ArtifactMismatch(
            f"{path} was built by TensorRT-RTX {built_by}, but this machine has {version}: convert again with this version"
        )
    if capability is not None and capability not in targets:
        raise ArtifactMismatch(
            f"{path} runs on compute capabilities {', '.join(map(str, targets))}, but this GPU has {capability}: convert with "
            "--engine torch, or with --engine tensorrt in the pinned container"
        )
    return facts
