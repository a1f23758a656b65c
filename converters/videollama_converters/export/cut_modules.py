"""Models with a single layer, disconnected from the modules before and after it, for the exporter (repeated_layers.py).

`x` enters the layer; `layered`, the output of all layers, enters what follows the stack.
"""

from dataclasses import replace

from torch import Tensor

from videollama_converters.export.repeated_layers import BEFORE, LAYER_INPUT, LAYER_NEW, LAYER_OUTPUT, LAYERED, LOGITS
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import AudioConfig, LanguageConfig, ModelConfig, VisionConfig
from videollama_core.model.connector import BLOCKS, Connector
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

CUT_CONNECTOR = Graph(
    "cut_connector",
    (*CONNECTOR.inputs, *(f"input_{number}" for number in range(5))),
    (*(f"output_{number}" for number in range(5)), *CONNECTOR.outputs),
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


class CutConnector(Connector):
    """A connector whose two stages have their first two blocks, all disconnected: every piece has an input and an output of its own.

    The sizes of the pieces are not asserted to be equal: the exporter would compute with the number of steps, a sum with a quotient
    in it, wherever a plain name does.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for stage in (self.s1, self.s2):
            for number in range(3, BLOCKS + 1):
                delattr(stage, f"b{number}")

    def forward(  # type: ignore[override]
        self, features: Tensor, frame_index: Tensor, x1: Tensor, maps: Tensor, rows: Tensor, x2: Tensor, refined: Tensor
    ) -> tuple[Tensor, ...]:
        first, repeated = self.s1.children()
        before = first(self.maps(features)), repeated(x1), self.rows(self.volume(maps, frame_index))
        first, repeated = self.s2.children()
        return *before, first(rows), repeated(x2), self.tokens(refined)
