"""Runs a real `vl2 serve`, also on a bundle whose language model takes no time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from videollama_benchmarks.overhead.free_model import STEP_VARIABLE
from videollama_benchmarks.recording import TREE
from videollama_core.engines.bundle import MANIFEST, REPOSITORY
from videollama_core.protocol.contract import LANGUAGE_MODEL
from videollama_core.protocol.errors import ServerFailed

DEMO = TREE / "build/bench/tiny-shapes"
_MODEL = (
    "from videollama_benchmarks.overhead.free_stage import FreeLanguageModelStage as TritonPythonModel  # noqa: F401\n"
)
POSITIONS = 32_768  # context length, for long answers
_TICKS, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class RunningServer:
    """A server that was started to be measured."""

    address: str
    pid: int  # of `vl2 serve`
    openai: str = ""  # URL of its gateway, with --openai

    def processor_seconds(self) -> dict[str, float]:
        """Processor seconds so far of the server's processes, by name."""
        return self._by_name(lambda fields: (int(fields[11]) + int(fields[12])) / _TICKS)

    def megabytes(self) -> dict[str, float]:
        """Resident memory in MiB of the server's processes, by name."""
        return self._by_name(lambda fields: int(fields[21]) * _PAGE / 2**20)

    def _by_name(self, read: Callable[[list[bytes]], float]) -> dict[str, float]:
        """Sums over the processes with the same name; `read` is given the fields of /proc/PID/stat from the state on."""
        sums: dict[str, float] = {}
        for pid in _descendants(self.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:  # the process has ended
                continue
            name = _name(words)
            sums[name] = sums.get(name, 0.0) + read(fields)
        return sums


def converted_demo(*options: str, out: Path = DEMO) -> Path:
    """Convert the demo's checkpoint, unless it is converted. Args: options: of `vl2 convert`. Returns: the bundle's folder."""
    command = [sys.executable, "-m", "videollama_client", "convert", str(TREE / "training/checkpoints/tiny-shapes")]
    subprocess.run([*command, "--out", str(out), *options], check=True, stdout=subprocess.DEVNULL)
    return out


def with_free_model(bundle: Path, folder: Path) -> Path:
    """Make a bundle in `folder` of links to `bundle`, but with the free model in the language model stage."""
    for path in bundle.absolute().iterdir():
        if path.name not in (REPOSITORY, MANIFEST):
            (folder / path.name).symlink_to(path)
    repository = folder / REPOSITORY
    repository.mkdir()
    for path in (bundle.absolute() / REPOSITORY).iterdir():
        if path.name != LANGUAGE_MODEL.name:
            (repository / path.name).symlink_to(path)
    stage = repository / LANGUAGE_MODEL.name
    (stage / "1").mkdir(parents=True)
    (stage / "1/model.py").write_text(_MODEL)
    (stage / "config.pbtxt").write_bytes((bundle / REPOSITORY / LANGUAGE_MODEL.name / "config.pbtxt").read_bytes())
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    prefix = f"{REPOSITORY}/{LANGUAGE_MODEL.name}/"
    files = {name: entry for name, entry in manifest["files"].items() if not name.startswith(prefix)}
    changed = {"files": files, "max_seq_len": POSITIONS}
    (folder / MANIFEST).write_text(json.dumps(manifest | changed), "utf-8")
    return folder


@contextmanager
def serving(
    bundle: Path, step_seconds: float = 0.0, python: str = sys.executable, options: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """Run a server in a context.

    Args:
        step_seconds: duration of a decoding step of the free model.
        python: interpreter to run the server with.
        options: of `vl2 serve`.
    Raises: ServerFailed.
    """
    command = [python, "-m", "videollama_client", "serve", str(bundle.absolute()), "--grpc-port", "0", *options]
    environment = os.environ | {STEP_VARIABLE: str(step_seconds)}
    # Outside the source tree, from which Python would otherwise import, whatever its environment.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=bundle)
    try:
        values: dict[str, str] = {}
        for line in process.stdout or ():
            name, _, value = line.partition(" ")
            values[name] = value.strip()
            if name.startswith("ready"):
                break
        else:
            raise ServerFailed("vl2 serve did not start; its output above says why")
        yield RunningServer(values["gRPC"], process.pid, values.get("OpenAI", ""))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _name(words: list[bytes]) -> str:
    """A process's name: its stage, or its program."""
    for word in words:
        if word.endswith(b"/1/model.py"):
            return word.split(b"/")[-3].decode()
        if word == b"videollama_server.endpoint":
            return "endpoint"
        if word == b"videollama_server.sandbox.spawner":
            return "decoding"
        if word.endswith(b"/watcher.py"):
            return "watcher"
        if word in (b"serve", b"gateway"):
            return {b"serve": "vl2 serve", b"gateway": "gateway"}[word]
    return Path(os.fsdecode(words[0])).name


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    pids, waiting = [], [pid]
    while waiting:
        pids.append(waiting.pop())
        waiting += children.get(pids[-1], [])
    return pids
