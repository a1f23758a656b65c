"""Shared fixtures: golden data, converted checkpoints, running servers."""

import fcntl
import io
import json
import os
import signal
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from run_options import (  # noqa: F401
    pytest_addoption,
    pytest_collection,
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_sessionfinish,
)
from videollama_core.media.video_decoders import DECODER_VARIABLE, DECODERS, frame_decoder
from videollama_core.protocol.errors import InvalidRequest
from videollama_server.machine.memory import keep_freed

# Started in the background of a shell without job control, this process ignores Ctrl-C, and so would each that a test starts and stops.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is loaded, here and in what the tests start: the threads of so small models wait for one another, spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
keep_freed()  # else Linux clears fresh pages for each large tensor: a third of the processor time of a test with sound


ROOT = Path(__file__).parents[1]
# One export of each graph for all processes of a run, and for the next run with the same code.
os.environ.setdefault("VL2_GRAPH_CACHE", str(ROOT / "build" / "tests" / "graphs"))
GOLDEN = ROOT / "tests" / "golden"
MEDIA = GOLDEN / "media"
CHAT_VARIANTS = ("mistral-clip-8f", "mistral-clip-16f", "mixtral-clip-8f", "qwen2-siglip-16f", "qwen2-clip-8f")
AUDIO_VARIANT = "av-qwen2-siglip"
VARIANTS = (*CHAT_VARIANTS, "mistral-clip-8f-base", "mistral-clip-8f-lora", AUDIO_VARIANT)
TRAINED = ROOT / "training" / "checkpoints"
TINY_SHAPES, TINY_SHAPES_AV = TRAINED / "tiny-shapes", TRAINED / "tiny-shapes-av"
HELD_OUT, HELD_OUT_SOUNDS = ROOT / "benchmarks" / "shapes", ROOT / "benchmarks" / "sounds"
# Suggested by the golden data's own error analysis: independent float32 implementations stay below 3e-5 and 8e-5.
FEATURE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 5e-4
# From sound files: a filterbank's value between two bfloat16 may fall to either side.
SOUND_LOGIT_TOLERANCE = 0.05
SOUND_TOKEN_TOLERANCE = 0.02
# Odd in both dimensions: a few values are a level off (docs/architecture.md), so this file starts from the stored pixels.
DECODER_DEPENDENT = "odd_101x67.webm"


@pytest.fixture(autouse=True)
def ordinary_scheduling():
    """No test may leave this process with real-time priority: what is started from it would take the cores from everybody else."""
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@dataclass(frozen=True)
class Case:
    """One recorded question, with what the reference did at every step."""

    variant: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.facts["name"]

    @property
    def modality(self) -> str:
        return self.facts["modal"]

    @property
    def conversation(self) -> list[dict[str, str]]:
        instruct = self.facts["instruct"]
        return instruct if isinstance(instruct, list) else [{"role": "user", "content": instruct}]

    @property
    def segment(self) -> dict[str, float]:
        found = self.facts.get("preprocess", {})
        return {ours: found[theirs] for ours, theirs in (("start", "s"), ("end", "e")) if theirs in found}

    @property
    def max_new_tokens(self) -> int:
        return self.facts["generation"]["max_new_tokens"]

    @property
    def path(self) -> Path:
        return GOLDEN / self.facts["media"]

    def tensor(self, name: str) -> np.ndarray | None:
        return golden_tensors(self.variant).get(f"{self.name}.{name}")

    @property
    def uses_audio(self) -> bool:
        return self.modality == "audio" or bool(self.facts.get("preprocess", {}).get("va"))

    @property
    def logit_tolerance(self) -> float:
        return SOUND_LOGIT_TOLERANCE if self.uses_audio else LOGIT_TOLERANCE

    def close_to_tokens(self, found: np.ndarray) -> bool:
        """Whether media tokens [N, D] are those recorded: all vision tokens, and every so many-th audio token."""
        vision, audio = self.tensor("connector_output"), self.tensor("audio_tokens")
        count = 0 if vision is None else len(vision)
        if vision is not None and not np.abs(found[:count] - vision).max() <= FEATURE_TOLERANCE:
            return False
        if not self.uses_audio:
            return len(found) == count
        stride = self.facts["audio_stride"]
        if len(found) != count + self.facts["num_audio_tokens"]:
            return False
        if audio is None:  # this case stores them all, inside the spliced sequence
            place = self.facts["input_ids"].index(-202)
            audio = self.tensor("inputs_embeds")[place : place + self.facts["num_audio_tokens"]]
        return float(np.abs(found[count:][::stride] - audio).max()) <= SOUND_TOKEN_TOLERANCE

    def starts_from_pixels(self) -> bool:
        return self.facts.get("media", "").endswith(DECODER_DEPENDENT)

    def source(self) -> Any:
        """The media as a caller of the client would hand it over."""
        if self.facts.get("input") == "ndarray":
            return decode_all(self.path)[self.facts["frames_taken"]]
        if self.facts.get("input") == "list_of_paths":
            return [self.path / name for name in self.facts["files"]]
        return self.path

    def files(self) -> tuple[str | None, list[bytes]]:
        """Kind and encoded files, as they travel."""
        if self.modality == "text":
            return None, []
        if self.facts.get("input") == "ndarray":
            buffer = io.BytesIO()
            np.save(buffer, self.source())
            return "frames", [buffer.getvalue()]
        if self.facts.get("input") == "list_of_paths":
            return "frames", [path.read_bytes() for path in self.source()]
        if self.path.is_dir():
            return "folder", [path.read_bytes() for path in sorted(self.path.iterdir())]
        kind = "video_with_audio" if self.uses_audio and self.modality == "video" else self.modality
        return kind, [self.path.read_bytes()]


@cache
def decode_all(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@cache
def golden(variant: str) -> dict[str, Any]:
    return json.loads((GOLDEN / variant / "golden.json").read_text("utf-8"))


@cache
def golden_tensors(variant: str) -> dict[str, np.ndarray]:
    """bfloat16 as float32. Equal tensors are stored once: the file's metadata names what each other one is the same as."""
    import torch
    from safetensors import safe_open

    with safe_open(GOLDEN / variant / "golden.safetensors", "pt") as file:
        stored = file.get_tensors()
        stored |= {name: stored[same] for name, same in (file.metadata() or {}).items()}
    return {
        name: tensor.float().numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()
        for name, tensor in stored.items()
    }


def cases(variant: str) -> list[Case]:
    return [Case(variant, facts) for facts in golden(variant)["cases"]]


def case(variant: str, name: str) -> Case:
    return next(one for one in cases(variant) if one.name == name)


def checkpoint(variant: str) -> Path:
    trained = TRAINED / variant
    return trained if trained.is_dir() else GOLDEN / variant / golden(variant)["checkpoint"]


def language_folder(variant: str) -> Path:
    """Where the variant's language model and tokenizer lie: its base model, if it has one."""
    base = GOLDEN / variant / "base"
    return next(base.iterdir()) if base.is_dir() else checkpoint(variant)


@pytest.fixture(params=DECODERS)
def video_decoder(request, monkeypatch):
    """Runs a test with each decoder of video files; its name."""
    try:
        frame_decoder(request.param)
    except InvalidRequest as error:
        pytest.skip(str(error))
    monkeypatch.setenv(DECODER_VARIABLE, request.param)
    return request.param


@cache
def convert_once(source: Path, name: str, **engine: Any) -> Path:
    """Kept in build/tests, and made again only when no longer valid."""
    from videollama_converters.convert import convert
    from videollama_converters.engine_options import EngineOptions

    out = ROOT / "build" / "tests" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{name}.lock").open("w") as lock:  # two processes of one run: the second finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        return convert(source, out, options=EngineOptions(**engine))


def torch_bundle(variant: str) -> Path:
    """A golden variant for `--engine torch`."""
    return convert_once(
        checkpoint(variant), f"{variant}-torch", engine="torch", dtype="float32", max_seq_len=4096, slots=4
    )


@pytest.fixture(scope="session")
def bundle_of():
    """Name of a golden variant or tiny-shapes -> its converted folder; kept in build/tests and made again only when no longer valid."""
    return lambda variant: convert_once(checkpoint(variant), variant)


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """A converted folder whose answers go on until they are ended: for what happens to a running one."""
    from checkpoints import endless_checkpoint
    from videollama_converters.convert import convert

    folder = tmp_path_factory.mktemp("endless")
    return convert(endless_checkpoint(folder / "source"), folder / "bundle")


@pytest.fixture
def hub():
    """A server on this machine that speaks the protocol of the Hugging Face hub."""
    import hub_server

    with hub_server.running() as server:
        yield server


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """This process asks the server, with an empty cache, from an empty folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return hub


@cache
def _export_typed(folder: Path, variant: str, graph: Any, dtype: Any) -> Path:
    from videollama_converters.export.graph_specs import graph_sources
    from videollama_converters.export.graphs import export_graph
    from videollama_core.checkpoint.parts import open_checkpoint

    parts, path = open_checkpoint(checkpoint(variant)), folder / f"{variant}-{graph.name}-{dtype}.onnx"
    export_graph(graph, parts.config, graph_sources(graph, parts), path, lambda: None, dtype)
    return path


@pytest.fixture(scope="session")
def typed_graph(tmp_path_factory):
    """(variant, graph, dtype) -> the graph's file as TensorRT is given it; exported once in a session."""
    folder = tmp_path_factory.mktemp("typed-graphs")
    return lambda variant, graph, dtype: _export_typed(folder, variant, graph, dtype)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small data set of the synthetic world and an untrained checkpoint."""
    from videollama_training.shapes import make
    from videollama_training.shapes.start import make_start

    folder = tmp_path_factory.mktemp("world")
    entries = []
    for name, maker, number in (
        (make.PICTURES, partial(make.make_picture, seed=1), 8),
        (make.TEXTS, partial(make.make_text, seed=1), 6),
        (make.TRAIN, partial(make.make_media, seed=1, held_out=False), 6),
        (make.HELD_OUT, partial(make.make_media, seed=1, held_out=True), 1),
    ):
        entries += make.make_split(folder, name, maker, number, lambda: None, workers=1)
    make_start(folder / "start", (m["value"] for entry in entries for m in entry["conversations"]), seed=1)
    return folder
