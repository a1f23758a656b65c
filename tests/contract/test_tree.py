"""Who may import whom, and what the client's install brings."""

import ast
import importlib.metadata
import re
import subprocess
import sys

from conftest import ROOT

HUB, CLIENT, CONVERTERS = ROOT / "videollama_core", ROOT / "client", ROOT / "converters"
TRAINING, BENCHMARKS = ROOT / "training", ROOT / "benchmarks"
OURS = {
    "videollama_core",
    "videollama_client",
    "videollama_converters",
    "videollama_training",
    "videollama_benchmarks",
}
# What the bare install may import of the hub: it brings numpy and the standard library only.
LIGHT = {"videollama_core.protocol.contract", "videollama_core.protocol.errors", "videollama_core.protocol.messages"}


def imports(folder):
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, alias.name
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path, node.module
                for alias in node.names:
                    yield path, f"{node.module}.{alias.name}"


def test_arrows_point_at_the_hub():
    arrows = (
        (HUB, {"videollama_core"}),
        (CONVERTERS, {"videollama_core", "videollama_converters"}),
        (TRAINING, {"videollama_core", "videollama_training"}),
        # Who measures the service is one of its users.
        (BENCHMARKS, {"videollama_core", "videollama_client", "videollama_benchmarks"}),
    )
    for folder, allowed in arrows:
        for path, name in imports(folder):
            assert name.split(".")[0] not in OURS - allowed, f"{path} imports {name}"
    for path, name in imports(CLIENT):
        if name.split(".")[0] == "videollama_core":
            assert any(name == module or name.startswith(module + ".") for module in LIGHT), f"{path} imports {name}"
        assert name.split(".")[0] not in OURS - {"videollama_core", "videollama_client"}, f"{path} imports {name}"


def test_nobody_imports_the_reference():
    for folder in (HUB, CLIENT, CONVERTERS, TRAINING, BENCHMARKS):
        for path, name in imports(folder):
            package = name.split(".")[0]
            assert package not in ("videollama2", "timm"), f"{path} imports {name}"
            assert package != "decord" or path.name == "decord_file.py", f"{path} imports {name}"  # optional there


def test_importing_the_client_is_light():
    heavy = "('torch', 'transformers', 'onnxruntime', 'onnx', 'av', 'PIL', 'tokenizers')"
    script = f"import videollama_client, sys; found = [m for m in {heavy} if m in sys.modules]; assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_bare_install_names_no_heavy_package():
    needs = importlib.metadata.requires("videollama2-service") or []
    bare = {re.split(r"[\s<>=!\[;]", need)[0] for need in needs if "extra ==" not in need}
    assert bare == {"click", "grpcio", "numpy", "protobuf", "tritonclient"}


def test_the_rest_of_the_hub_does_not_know_triton():
    adapters = {"stage.py", "stage_calls.py", "entry_stage.py"}
    for path, name in imports(HUB):
        if path.name not in adapters:
            assert name.split(".")[0] not in ("triton_python_backend_utils", "tritonclient", "grpc"), (
                f"{path} imports {name}"
            )
