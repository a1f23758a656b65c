"""Hashes the code that decides what a conversion step writes: the step's modules, and all of ours that they import."""

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_OURS = ("videollama_core", "videollama_converters")


def code_hash(*modules: str) -> str:
    """SHA-256 over the sources of the modules and of every module of ours that they import, directly or indirectly.

    Raises: ModuleNotFoundError for a name that is not a module: a step with a misspelled name must not look unchanged.
    """
    sources: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = _source(name).read_bytes()
            waiting += _imported(sources[name])
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()


def _source(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is not a module", name=module)
    return Path(spec.origin)


def _imported(source: bytes) -> list[str]:
    """Modules of ours that a source imports, packages included."""
    return [name for name in _named(source) if name.split(".")[0] in _OURS and _is_module(name)]


@cache  # the steps of one conversion share most of their sources
def _named(source: bytes) -> tuple[str, ...]:
    """All imported names that may be modules."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a class or function, not a module
        return False
