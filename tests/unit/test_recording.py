"""What CUDA graphs record, at every published size, on a device that holds no numbers.

A recording ends with an error where the host reads a value, or where a tensor of the CPU takes part. Here the first has no
answer, and a mode that sees every operation refuses the second: so the functions can be held to it without a GPU.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videollama_core.checkpoint.read_config import published_config
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.engines.torch_encoders import TorchEncoders
from videollama_core.generation.torch_runner import TorchRunner
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder

DEVICE = torch.device("meta")


class OnOneDevice(TorchDispatchMode):
    """Refuses operations that take or return a CPU tensor; a lone number may travel with a kernel's arguments."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.device != DEVICE and value.dim():
                raise AssertionError(f"{func} works on a tensor of {value.device}")
        return result


class NoNumbersOfTheHost(TorchFunctionMode):
    """Refuses tensors made from Python numbers: a copy to the device that is not recorded."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            raise AssertionError(f"{func.__name__} copies from the host")
        return func(*args, **(kwargs or {}))


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_recorded_function_needs_the_host(name):
    config = published_config(name)
    with DEVICE:
        vision, connector = VisionEncoder(config.vision, config.pixels), Connector(config)
        audio = AudioEncoder(config.audio, config.language.width).bfloat16() if config.audio else None
        decoder = Decoder(config.language).bfloat16()
    encoders, runner = TorchEncoders(vision.bfloat16(), connector.bfloat16(), audio), TorchRunner(decoder, 16, 2048)
    size, frames, width = config.pixels.size, config.num_frames, config.language.width
    with torch.inference_mode(), OnOneDevice(), NoNumbersOfTheHost():
        features = encoders.vision(empty(encoders.frames_per_run, size, size, 3, dtype=torch.uint8))
        features = features.new_empty((frames, *features.shape[1:]))
        steps = encoders.connector(features, empty(frames))
        assert steps.shape[-1] == width and steps.shape[0] * steps.shape[1] == config.media_tokens
        if config.audio:
            audio_tokens = encoders._audio_tokens(empty(1, config.audio.rows, config.audio.bins, dtype=torch.float32))
            assert audio_tokens.shape == (1, config.tokens_of("audio"), width)
        scores = runner._step(1024, empty(4), empty(4))
        assert scores.shape == (4, config.language.vocab_size) and scores.dtype is torch.float32


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x.argmax().item()],
        lambda x: x[x > 0],
        lambda x: x if x.any() else -x,
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
        lambda x: torch.nn.functional.linear(x, torch.ones(3, 3)),
    ],
)
def test_functions_that_cannot_be_recorded_are_detected(function):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), OnOneDevice(), NoNumbersOfTheHost():
        function(empty(3, dtype=torch.float32))
