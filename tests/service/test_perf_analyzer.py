"""NVIDIA's perf_analyzer with the commands of docs/performance.md: its requests, by plain tritonclient, and the program itself."""

import base64
import json
import os
import queue
import re
import struct
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from conftest import MEDIA, ROOT
from service.servers import serving

VARIANT = "qwen2-clip-8f"
CLIP = (MEDIA / "plain_96x64.mp4").read_bytes()
INPUTS = {
    "data": [
        {
            "question": {"content": ["What happens?"], "shape": [1]},
            "media": {"b64": base64.b64encode(struct.pack("<I", len(CLIP)) + CLIP).decode(), "shape": [1]},
            "media_kind": {"content": ["video"], "shape": [1]},
            "max_new_tokens": {"content": [4], "shape": [1]},
        }
    ]
}


@pytest.fixture(scope="module", params=["--expose-ensemble", "--expose-stages"])
def server(request, bundle_of, server_of, tmp_path_factory):
    if request.param == "--expose-stages":  # as the tests' own server
        yield server_of(VARIANT)
        return
    with serving(bundle_of(VARIANT), tmp_path_factory.mktemp("perf") / "log", request.param) as running:
        yield running


class PerfAnalyzer:
    """The calls that version 2.48 makes before, during and after a measurement, in its order."""

    def __init__(self, address: str, model: str) -> None:
        self.client, self.model = triton.InferenceServerClient(address), model
        self.with_statistics = "statistics" in self.client.get_server_metadata().extensions
        self.inputs = {tensor.name: tensor for tensor in self.client.get_model_metadata(model).inputs}
        self.models = self._composing(model)

    def _composing(self, model: str) -> list[str]:
        config = self.client.get_model_config(model).config
        steps = config.ensemble_scheduling.step if config.platform == "ensemble" else []
        return [model, *(name for step in steps for name in self._composing(step.model_name))]

    def queue_counts(self) -> dict[str, int]:
        name = self.model if len(self.models) == 1 else ""
        statistics = self.client.get_inference_statistics(name).model_stats
        return {one.name: one.inference_stats.queue.count for one in statistics}

    def ask(self, count: int) -> list[int]:
        """Responses of each request, including the empty last ones."""
        tensors = []
        for name, value in INPUTS["data"][0].items():
            tensor = triton.InferInput(name, value["shape"], self.inputs[name].datatype)
            # As read from its file: strings with their length before them.
            packed = {"question": b"What happens?", "media": CLIP, "media_kind": b"video"}.get(name)
            raw = struct.pack("<i", 4) if packed is None else struct.pack("<I", len(packed)) + packed
            tensor._raw_content = raw
            tensors.append(tensor)
        messages: queue.Queue = queue.Queue()
        self.client.start_stream(lambda result, error: messages.put((result, error)))
        counts = []
        for number in range(count):
            self.client.async_stream_infer(
                self.model, tensors, request_id=str(number), enable_empty_final_response=True
            )
            counts.append(0)
            while True:
                result, error = messages.get(timeout=60)
                assert error is None, error
                counts[-1] += 1
                assert result.get_response().id == str(number)
                if result.get_response().parameters["triton_final_response"].bool_param:
                    break
        self.client.stop_stream()
        return counts


@pytest.mark.parametrize("model", ["videollama2", "ensemble"])
def test_its_requests_are_answered(model, server):
    """With statistics, every model that it knows must have worked between two reads, or it ends with `failed to find
    the requested model version`; that happened on `ensemble` once the media was cached.
    """
    asking = PerfAnalyzer(server.grpc, model)
    asking.ask(2)  # the media is known from now on
    before = asking.queue_counts() if asking.with_statistics else {}
    assert all(count >= 1 for count in asking.ask(3))
    if asking.with_statistics:
        after = asking.queue_counts()
        assert all(after[name] > before[name] for name in asking.models), (before, after)
    else:
        assert asking.models == [model]
        with pytest.raises(InferenceServerException, match="NotAllowed"):
            asking.client.get_inference_statistics(model)


def test_composing_models_are_shown_where_stages_are_exposed(server):
    asking = PerfAnalyzer(server.grpc, "ensemble")
    steps = ["perception", "preprocess", "encoder", "prompt", "tensorrt_llm", "detokenize"]
    assert asking.models == ["ensemble", *(steps if asking.with_statistics else [])]


# --- the program itself ---

WHEEL = "tritonclient==2.48.0"  # the last versions that brought it, and that Debian 12's C library can run


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """perf_analyzer from an old wheel of tritonclient, with the libraries that it needs from Triton's own wheel."""
    folder = tmp_path_factory.mktemp("perf_analyzer")
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*download, WHEEL], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("bin/perf_analyzer"))
        binary = Path(wheel.extract(name, folder))
    binary.chmod(0o755)
    libraries = Path(find_spec("pytriton").origin).parents[1] / "nvidia_pytriton.libs"
    for library, wanted in (("libb64", "libb64.so.0d"), ("libcudart", "libcudart.so.12")):
        (folder / wanted).symlink_to(next(libraries.glob(f"{library}-*")))
    (folder / "in.json").write_text(json.dumps(INPUTS))
    return binary


@pytest.mark.slow
@pytest.mark.installs
def test_the_documented_commands_measure(program, server):
    text = (ROOT / "docs/performance.md").read_text("utf-8")
    commands = re.findall(r"^perf_analyzer .*", text, re.MULTILINE)
    assert len(commands) == 2
    folder = next(parent for parent in program.parents if (parent / "in.json").exists())
    quick = ["--measurement-interval", "1500", "--stability-percentage", "80", "--max-trials", "5"]
    for command in commands:
        words = command.replace("localhost:8001", server.grpc).split()[1:]
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
        for _ in ("cold", "warm"):
            done = subprocess.run(
                [program, *words, *quick], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert float(re.search(r"throughput: ([\d.]+) infer/sec", done.stdout)[1]) > 0
