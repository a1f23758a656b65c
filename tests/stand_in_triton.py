"""The entry's stage outside Triton, whose own module is replaced by an empty one."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_STAGES = [
    f"videollama_server.stages.{name}" for name in ("python_backend", "decoupled", "calls", "watch", "entry_stage")
]


@contextmanager
def imported_entry_stage(monkeypatch) -> Iterator[Any]:
    """The freshly imported module of the entry's stage; the modules are forgotten at the end of the context."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    for name in _STAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(_STAGES[-1])
    for name in _STAGES:
        sys.modules.pop(name, None)
