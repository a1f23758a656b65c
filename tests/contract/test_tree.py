"""Who may import whom, and what the client's install brings."""

import ast
import importlib.metadata
import re
import subprocess
import sys

import pytest

from conftest import ROOT

# Package -> the packages of ours that it may import. Arrows point downwards only.
PACKAGES = {
    "videollama_core": ("", ()),
    "videollama_client": ("client", ("videollama_core.protocol",)),
    "videollama_server": ("server", ("videollama_core",)),
    "videollama_converters": ("converters", ("videollama_core", "videollama_server")),
    "videollama_training": ("training", ("videollama_core",)),
    # Who measures the service is one of its users.
    "videollama_benchmarks": (
        "benchmarks",
        ("videollama_core", "videollama_client", "videollama_server", "videollama_converters"),
    ),
}
# Room of the core -> what it may import of the core. Modules beside the rooms are named, too.
ROOMS = {
    "protocol": (),
    "model": ("protocol",),
    "media": ("protocol", "model.config"),
    "checkpoint": ("protocol", "model"),
    "sampling": ("protocol",),
    "contrast": ("protocol", "model.config"),
    "text": ("protocol", "checkpoint.read_config"),
    "prompt": ("protocol", "text"),
    "engines": ("protocol", "model", "media", "checkpoint", "text", "contrast"),
    "generation": ("protocol", "model", "checkpoint", "engines", "sampling", "contrast"),
    "pipeline": ("protocol", "model", "media", "checkpoint", "engines", "sampling", "text", "prompt", "contrast"),
}
MOST_FILES = 12  # of a room: past that, a stranger no longer sees what is in it


def folder_of(package):
    return ROOT / PACKAGES[package][0] / package


def imports(folder):
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    yield path, f"{node.module}.{alias.name}"


def is_below(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package):
    allowed = (package, *PACKAGES[package][1])
    for path, name in imports(folder_of(package)):
        assert name.split(".")[0] not in PACKAGES or is_below(name, allowed), f"{path} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_core_import_downwards_only(room):
    allowed = tuple(f"videollama_core.{name}" for name in (room, *ROOMS[room]))
    folder = ROOT / "videollama_core"
    for path, name in imports(folder):
        inside = path.relative_to(folder).parts[0].removesuffix(".py") == room
        if inside and name.startswith("videollama_core."):
            assert is_below(name, allowed), f"{path} imports {name}"


def test_every_room_of_the_core_has_its_rule():
    folder = ROOT / "videollama_core"
    found = {path.parent.name for path in folder.glob("*/__init__.py")} | {path.stem for path in folder.glob("*.py")}
    assert found - {"__init__"} == set(ROOMS)


def test_every_package_says_what_may_be_in_it():
    for path in (ROOT / "videollama_core").rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert text, path
        assert path.parent.name == "videollama_core" or "import" in text, path


def test_no_room_is_crowded():
    for folder in (ROOT / "videollama_core", ROOT / "server"):
        for room in {path.parent for path in folder.rglob("*.py")}:
            assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES, room


def test_nobody_imports_the_reference():
    for package in PACKAGES:
        for path, name in imports(folder_of(package)):
            foreign = name.split(".")[0]
            assert foreign not in ("videollama2", "timm"), f"{path} imports {name}"
            assert foreign != "decord" or path.name == "decord_file.py", f"{path} imports {name}"  # optional there


def test_importing_the_client_is_light():
    heavy = "('torch', 'transformers', 'onnxruntime', 'onnx', 'av', 'PIL', 'tokenizers')"
    script = f"import videollama_client, sys; found = [m for m in {heavy} if m in sys.modules]; assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_bare_install_names_no_heavy_package():
    needs = importlib.metadata.requires("videollama2-service") or []
    bare = {re.split(r"[\s<>=!\[;]", need)[0] for need in needs if "extra ==" not in need}
    assert bare == {"click", "grpcio", "numpy", "protobuf", "tritonclient"}


def test_the_core_knows_no_server():
    for path, name in imports(ROOT / "videollama_core"):
        assert name.split(".")[0] not in ("triton_python_backend_utils", "tritonclient", "grpc"), f"{path}: {name}"


def test_only_stages_know_the_python_backend():
    for path, name in imports(ROOT / "server"):
        if path.parent.name != "stages":
            assert name.split(".")[0] != "triton_python_backend_utils", f"{path} imports {name}"
