"""Models with a single layer, disconnected from the modules before and after it, for the exporter (repeated_layers.py).

`x` enters the layer; `layered`, the output of all layers, enters what follows the stack.
"""

from dataclasses import replace

from torch import Tensor

from videollama_converters.export.repeated_layers import BEFORE, LAYER_INPUT, LAYER_NEW, LAYER_OUTPUT, LAYERED, LOGITS
from videollama_core.engines.specs import AUDIO_ENCODER, VISION_ENCODER, Graph
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import AudioConfig, LanguageConfig, VisionConfig
from videollama_core.model.decoder import Decoder, rotary_tables
from videollama_core.model.vision import VisionEncoder

CUT_DECODER = Graph(
    "cut_decoder",
    ("positions", "bias", "last", LAYER_INPUT, LAYERED, "past_key_0", "past_value_0"),
    (LAYER_OUTPUT, LAYER_NEW, LOGITS),
)
CUT_VISION_ENCODER = Graph(
    "cut_vision_encoder",
    (*VISION_ENCODER.inputs, LAYER_INPUT, LAYERED),
    (BEFORE, LAYER_OUTPUT, *VISION_ENCODER.outputs),
)
CUT_AUDIO_ENCODER = Graph(
    "cut_audio_encoder",
    (*AUDIO_ENCODER.inputs, LAYER_INPUT, LAYERED),
    (BEFORE, LAYER_OUTPUT, *AUDIO_ENCODER.outputs),
)


def one_layer_of_language(config: LanguageConfig) -> LanguageConfig:
    """The configuration with a single decoder layer."""
    return replace(config, layers=1)


def one_layer_of_vision(config: VisionConfig) -> VisionConfig:
    """The configuration with a single tower layer, whose output is used."""
    return replace(config, layers=1, select_layer=1)


class CutDecoder(Decoder):
    def forward(  # type: ignore[override]
        self,
        positions: Tensor,
        bias: Tensor,
        last: Tensor,
        x: Tensor,
        layered: Tensor,
        past_key: Tensor,
        past_value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert layered.shape == x.shape  # so that the exporter uses the same symbolic dimensions for both
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        (layer,) = self.model.layers
        x, new = layer(x, cos, sin, bias, past_key, past_value)
        return x, new.unsqueeze(0), self.head(layered, last)


class CutVisionEncoder(VisionEncoder):
    def forward(self, frames: Tensor, x: Tensor, layered: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        before = self.embed(frames)
        assert before.shape == x.shape == layered.shape
        (layer,) = self.encoder.layers
        return before, layer(x), self.patches(layered)


class CutAudioEncoder(AudioEncoder):
    """Cut from a whole encoder, because each layer's scale depends on the number of layers."""

    def __init__(self, config: AudioConfig, language_width: int) -> None:
        super().__init__(config, language_width)
        self.tower.encoder.layers = self.tower.encoder.layers[:1]

    def forward(self, filterbank: Tensor, x: Tensor, layered: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        before, bias = self.tower.encoder.embed(self.tower.embed(filterbank))
        assert before.shape == x.shape == layered.shape
        (layer,) = self.tower.encoder.layers
        return before, layer(x, bias), self.projector(layered)
