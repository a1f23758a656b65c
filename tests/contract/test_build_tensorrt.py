"""Building engines with a small class in TensorRT's place, whose builder needs a GPU."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from conftest import MEDIA, checkpoint
from videollama_converters.convert import convert, plan_steps
from videollama_converters.engine_options import EngineOptions
from videollama_converters.engine_steps import ENCODER_STEPS, Conversion
from videollama_converters.steps.progress import SilentProgress
from videollama_converters.tensorrt import build as build_module
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.specs import CONNECTOR
from videollama_core.engines.tensorrt_encoders import check_sidecar
from videollama_core.protocol.errors import InvalidRequest

PICTURE = MEDIA / "desert.jpg"
MACHINE = {"tensorrt": "10.14.1.48", "gpu": "NVIDIA H100 80GB HBM3", "capability": "9.0", "cuda": "13.1"}


class FakeTensorRt:
    """The API that build_engine uses. A timing cache from another TensorRT or GPU is refused, as IBuilderConfig
    documents.
    """

    def __init__(self, machine: str) -> None:
        self.machine, self.flags = machine.encode(), {"TF32"}  # TensorRT computes float32 in TF32 unless told otherwise

    def module(self) -> SimpleNamespace:
        owner = self

        class Cache:
            def __init__(self, content: bytes) -> None:
                self.content = content or owner.machine

            def serialize(self) -> bytes:
                return self.content

        class Settings:
            cache: Cache | None = None
            profiles = 0

            def set_memory_pool_limit(self, pool, size) -> None: ...
            def clear_flag(self, flag) -> None:
                owner.flags.discard(flag)

            def add_optimization_profile(self, profile) -> None:
                self.profiles += 1

            def create_timing_cache(self, content: bytes) -> Cache:
                return Cache(content)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                fits = cache.content == owner.machine
                self.cache = cache if fits else None
                return fits

            def get_timing_cache(self) -> Cache | None:
                return self.cache

        class Builder:
            def __init__(self, logger) -> None: ...
            def create_network(self, flags):
                return SimpleNamespace()

            def create_builder_config(self) -> Settings:
                return Settings()

            def create_optimization_profile(self):
                return SimpleNamespace(set_shape=lambda *shapes: None)

            def build_serialized_network(self, network, settings) -> bytes:
                return b"plan of " + owner.machine

        return SimpleNamespace(
            Logger=type("Logger", (), {"WARNING": 0, "__init__": lambda self, level: None}),
            Builder=Builder,
            OnnxParser=lambda network, logger: SimpleNamespace(parse_from_file=lambda path: True),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
            MemoryPoolType=SimpleNamespace(WORKSPACE=0),
            ProfilingVerbosity=SimpleNamespace(DETAILED=1),
            BuilderFlag=SimpleNamespace(TF32="TF32"),
        )


@pytest.fixture
def built(monkeypatch, tmp_path, bundle_of):
    """Builds the connector on one machine after another, in one folder; returns the fake and the engine's path."""
    bundle = Bundle.open(bundle_of("mistral-clip-8f"))

    def build(machine: dict[str, str]):
        fake = FakeTensorRt(json.dumps(machine))
        monkeypatch.setitem(sys.modules, "tensorrt", fake.module())
        monkeypatch.setattr(build_module, "describe_machine", lambda: machine)
        engine = tmp_path / "engines/connector.engine"
        path = bundle.graph(CONNECTOR.name)
        build_module.build_engine(
            CONNECTOR, bundle.config, path, engine, tmp_path / "engines/timing", lambda line: None
        )
        return fake, engine

    return build


@pytest.mark.parametrize("change", [{"tensorrt": "10.13.3.9"}, {"capability": "8.9", "gpu": "NVIDIA L40S"}])
def test_a_timing_cache_of_another_machine_does_not_fail_the_build(change, built):
    """With one cache for all machines it was refused, get_timing_cache returned None, and the finished engine was never
    written.
    """
    for machine in (MACHINE, MACHINE | change, MACHINE):
        _, engine = built(machine)
        assert engine.read_bytes() == b"plan of " + json.dumps(machine).encode()
        assert check_sidecar(engine, machine)["machine"] == machine
    assert len(list(engine.parent.glob("timing/*.cache"))) == 2


def test_an_engine_is_written_though_its_timing_cache_is_refused(built):
    _, engine = built(MACHINE)
    (kept,) = engine.parent.glob("timing/*.cache")
    kept.write_bytes(b"cut off")
    engine.unlink()
    built(MACHINE)
    assert engine.is_file()


def test_float32_is_not_computed_in_tf32(built):
    assert "TF32" not in built(MACHINE)[0].flags


@pytest.mark.parametrize("what", ["language model", "tower"])
def test_a_gpu_without_fp8_is_refused_before_anything_is_built(what, tmp_path, monkeypatch):
    """--gpu defaulted to H100; the builder then omits what the server's start needs, after hours of calibration."""
    (tmp_path / "train.jsonl").write_text('{"text": "What happens in this video?"}\n')
    recipe = Recipe("float16", "fp8", "fp8", calibration=str(tmp_path)) if what == "language model" else Recipe()
    options = EngineOptions("tensorrt", "float16", recipe=recipe, fp8_media=(PICTURE,) if what == "tower" else ())
    ampere = MACHINE | {"gpu": "NVIDIA A100-SXM4-80GB", "capability": "8.0"}
    monkeypatch.setitem(ENCODER_STEPS, "tensorrt", replace(ENCODER_STEPS["tensorrt"], machine=lambda: ampere))
    with pytest.raises(InvalidRequest, match=r"need compute capability 8.9, and this machine's NVIDIA A100\S+ has 8.0"):
        convert(checkpoint("mistral-clip-8f"), tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()
    options.check_machine(MACHINE)
    EngineOptions("tensorrt", "float16").check_machine(ampere)


def test_engines_are_built_again_for_another_machine_and_other_commands(tmp_path):
    parts = open_checkpoint(checkpoint("mistral-clip-8f"))

    def keys(machine: dict[str, str], **recipe) -> dict[str, object]:
        options = EngineOptions("tensorrt", "bfloat16", recipe=Recipe("float16", **recipe))
        steps = plan_steps(Conversion(parts, {}, tmp_path, SilentProgress(), options, machine))
        return {step.name: step.inputs for step in steps if step.name.endswith("engine")}

    first = keys(MACHINE)
    assert first == keys(MACHINE) and len(first) == 3
    for changed in (MACHINE | {"tensorrt": "10.13.3.9"}, MACHINE | {"capability": "8.0"}):
        assert all(first[name] != inputs for name, inputs in keys(changed).items())
    assert first["language model engine"] != keys(MACHINE, max_batch_size=8)["language model engine"]
