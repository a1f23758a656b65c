"""Which package may import which, and what the client's install brings."""

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
    "videollama_gateway": (
        "gateway",
        ("videollama_client", "videollama_core.protocol", "videollama_core.telemetry", "videollama_core.event_loop"),
    ),
    "videollama_server": ("server", ("videollama_core",)),
    "videollama_converters": ("converters", ("videollama_core", "videollama_server")),
    "videollama_training": ("training", ("videollama_core",)),
    # Who measures the service is one of its users.
    "videollama_benchmarks": (
        "benchmarks",
        ("videollama_core", "videollama_client", "videollama_server", "videollama_converters"),
    ),
}
# Room of a package -> what it may import of the package. Modules beside the rooms are named, too.
CORE = {
    "event_loop": (),
    "protocol": (),
    "telemetry": ("protocol",),
    "model": ("protocol",),
    "media": ("protocol", "model.config"),
    "checkpoint": ("protocol", "model"),
    "sampling": ("protocol",),
    "contrast": ("protocol", "model.config"),
    "template_budget": ("protocol",),
    "template": ("protocol", "template_budget"),
    "text": ("protocol", "checkpoint.files", "template"),
    "prompt": ("protocol", "text"),
    "engines": ("protocol", "model", "media", "checkpoint", "text", "contrast"),
    "generation": ("protocol", "model", "checkpoint", "engines", "sampling", "contrast"),
    "pipeline": ("protocol", "model", "media", "checkpoint", "engines", "sampling", "text", "prompt", "contrast"),
}
CONVERTERS = {
    "steps": (),
    "gpus": (),
    "export": ("steps",),
    "tensorrt_llm": ("gpus",),
    "engine_options": ("gpus", "tensorrt_llm"),
    "tensorrt": ("steps", "export", "engine_options"),
    "hub": ("steps",),
    "locate": ("steps", "hub"),
    "plan": ("gpus", "tensorrt_llm"),
    "assemble": ("engine_options", "tensorrt_llm"),
    "engine_steps": ("steps", "export", "tensorrt", "tensorrt_llm", "engine_options"),
    "tokenizer_check": (),
    "convert": ("steps", "export", "tensorrt", "engine_options", "engine_steps", "assemble", "tokenizer_check"),
    "dry_run": ("export", "tensorrt_llm", "engine_options"),
    "cli": ("steps", "gpus", "tensorrt_llm", "engine_options", "locate", "plan", "convert", "dry_run"),
}
ROOMS = {"videollama_core": CORE, "videollama_converters": CONVERTERS}
MOST_FILES = 12  # of a room: past that, a stranger no longer sees what is in it
MOST_LINES = 300  # of a file


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


@pytest.mark.parametrize(("package", "room"), [(package, room) for package in ROOMS for room in ROOMS[package]])
def test_subpackages_import_downwards_only(package, room):
    allowed = tuple(f"{package}.{name}" for name in (room, *ROOMS[package][room]))
    folder = folder_of(package)
    for path, name in imports(folder):
        inside = path.relative_to(folder).parts[0].removesuffix(".py") == room
        if inside and name.startswith(package + "."):
            assert is_below(name, allowed), f"{path} imports {name}"


@pytest.mark.parametrize("package", ROOMS)
def test_every_subpackage_has_a_rule_and_there_are_no_cycles(package):
    folder = folder_of(package)
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")} | {path.stem for path in folder.glob("*.py")}
    assert rooms - {"__init__"} == set(ROOMS[package])
    above = set(ROOMS[package])
    for room, below in reversed(ROOMS[package].items()):  # written from below to above
        above.discard(room)
        assert {name.split(".")[0] for name in below} <= above, room


def test_every_package_documents_what_belongs_in_it():
    for package in ROOMS:
        for path in folder_of(package).rglob("__init__.py"):
            text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
            assert text, path
            assert path.parent.name == "videollama_core" or "import" in text.lower(), path


def test_no_subpackage_is_crowded():
    for folder in map(folder_of, PACKAGES):
        for room in {path.parent for path in folder.rglob("*.py")}:
            assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES, room


def test_no_file_is_long():
    folders = (
        "client",
        "converters",
        "gateway",
        "server",
        "videollama_core",
        "training",
        "benchmarks",
        "examples",
        "tests",
    )
    paths = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    assert len(paths) > 200
    for path in paths:
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, path


def test_a_gpu_machine_finds_every_package_without_an_installation():
    (path,) = re.findall(r"PYTHONPATH=(\S+)", (ROOT / "scripts/test_gpu.sh").read_text("utf-8"))
    assert set(path.split(":")) == {folder or "." for folder, _ in PACKAGES.values()}


def test_no_module_imports_the_reference():
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


def test_the_core_imports_no_server():
    for path, name in imports(ROOT / "videollama_core"):
        assert name.split(".")[0] not in ("triton_python_backend_utils", "tritonclient", "grpc"), f"{path}: {name}"


def test_only_stages_import_the_python_backend():
    for path, name in imports(ROOT / "server"):
        if path.parent.name != "stages":
            assert name.split(".")[0] != "triton_python_backend_utils", f"{path} imports {name}"
