"""How a run of the tests is shaped: its own options, and what its processes share."""

import gc
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--without-torch", action="store_true", help="skip what imports torch (make fast)")
    parser.addoption("--write-cases", action="store_true", help="write the tables of docs/security.md (make security)")


def pytest_configure(config):
    if config.getoption("--without-torch"):
        assert "torch" not in sys.modules, "torch was imported before the first test: import it where it is needed"
        sys.meta_path.insert(0, _NoTorch())


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imported modules and collected tests live until the end: Python need not search them for garbage, now or in a later collection.

    Searching them takes a fifth of the time until the first test, and about a second whenever Python examines all objects.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


_SHARED = ("server_of", "typed_graph", "default_server")  # fixtures that cost more than a file of tests may gain
_TRAINING = "test_training"  # begins the names of files that need transformers' Trainer: four seconds in each process
_LONGEST_FIRST = (
    "service",
    "security",
    "parity",
    "contract",
    "unit",
)  # folders: a long file begun last is waited for alone


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(config, items):
    """Where processes share the tests (`make test`): a file stays whole, and so do all that share what is costly."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    files: dict[Path, set[str]] = {}
    for item in items:
        files.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    groups: dict[pytest.Item, tuple[int, str]] = {}
    for item in items:
        shared = [name for name in _SHARED if name in files[item.path]]
        shared += [_TRAINING] if item.path.name.startswith(_TRAINING) else []
        folder = item.path.parent.name
        place = -1 if shared else _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else len(_LONGEST_FIRST)
        groups[item] = place, shared[0] if shared else str(item.path)
        item.add_marker(pytest.mark.xdist_group(groups[item][1]))
    items.sort(key=groups.__getitem__)


def pytest_collection_finish(session):
    """Tests of a file in several processes make what it shares more than once: that costs minutes, and no test would fail by it."""
    if hasattr(session.config, "workerinput") and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError(f"pytest-xdist does not keep groups together with pytest {pytest.__version__}")
    if "torch" in sys.modules:
        _read_operators_once()


def _read_operators_once():
    """torch's exporter parses the sources of its 500 operators anew for each graph: 0.3 s for each of fifty."""
    with suppress(ImportError):  # a name of its own use, which another version may not have
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))


@pytest.hookimpl(trylast=True)  # after the fixtures of the session
def pytest_sessionfinish():
    """Not one server more than before, whatever failed."""
    servers = sys.modules.get("service.servers")
    for server in [] if servers is None else servers.STARTED:
        server.process.kill()  # its watcher ends the rest
        server.process.communicate()


class _NoTorch:
    """Whoever imports torch is skipped, be it a file of tests, a fixture or a test: so nobody has to keep a list."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            pytest.skip("needs torch", allow_module_level=True)
