"""TensorRT-RTX engines of tiny encoders against PyTorch; needs an Ampere, Ada or Blackwell card and the extra tensorrt-rtx."""

import numpy as np
import pytest

from conftest import checkpoint
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions
from videollama_converters.tensorrt.build_rtx import TARGETS
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle, runtime_cache_path
from videollama_core.engines.media_encoder import MediaEncoder, to_host
from videollama_core.engines.specs import CONNECTOR, VISION_ENCODER
from videollama_core.engines.tensorrt_rtx_encoders import gpu_capability
from videollama_core.engines.torch_encoders import TorchEncoders

pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
if gpu_capability() not in TARGETS:
    pytest.skip(f"TensorRT-RTX has no kernels for compute capability {gpu_capability()}", allow_module_level=True)


@pytest.mark.parametrize("variant", ["mistral-clip-8f", "qwen2-siglip-16f", "av-qwen2-siglip"])
def test_engines_encode_as_pytorch_does(variant, tmp_path):
    """A picture, a video and a sound, each three times: compiled, recorded and replayed in between the others."""
    options = EngineOptions("tensorrt-rtx", "bfloat16", max_seq_len=4096)
    bundle = Bundle.open(convert(checkpoint(variant), tmp_path / "out", options=options))
    parts, random, config = open_checkpoint(checkpoint(variant)), np.random.default_rng(0), bundle.config
    size = config.pixels.size
    media = [(random.integers(0, 256, (count, size, size, 3), np.uint8), None) for count in (1, config.num_frames)]
    if config.audio:
        media.append((media[0][0][:0], random.normal(size=(config.audio.rows, config.audio.bins)).astype(np.float32)))
    exact = MediaEncoder.__new__(MediaEncoder)
    exact._config, exact._kept = config, None
    audio = parts.audio_encoder() if config.audio else None
    exact._encoders = TorchEncoders(parts.vision_encoder(), parts.connector(), audio)
    encoder = MediaEncoder(bundle)
    for _ in range(3):
        for each in media:
            computed, wanted = to_host(encoder.encode(*each)).ravel(), to_host(exact.encode(*each)).ravel()
            assert computed @ wanted / np.linalg.norm(computed) / np.linalg.norm(wanted) >= 0.999
    for graph in (VISION_ENCODER, CONNECTOR):
        assert (bundle.root / runtime_cache_path(graph.name)).stat().st_size > 0
