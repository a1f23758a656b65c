"""How each graph is exported: a new graph is one entry of SPECS.

Names and tensors of the graphs are defined in the core (`videollama_core.engines.specs`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from videollama_converters.export.cut_modules import (
    CUT_AUDIO_ENCODER,
    CUT_CONNECTOR,
    CUT_DECODER,
    CUT_VISION_ENCODER,
    CutAudioEncoder,
    CutConnector,
    CutDecoder,
    CutVisionEncoder,
    one_layer_of_language,
    one_layer_of_vision,
)
from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.checkpoint.shards import Sources
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, DECODER, EMBEDDING, VISION_ENCODER, Graph
from videollama_core.media.video import MAX_FRAMES
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import AudioConfig, ModelConfig, downsampled
from videollama_core.model.connector import BLOCKS, Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder

IMAGE_STEPS = 4  # time steps that the connector computes at most for a single frame: edges and middle (frame_plan.py)
_TABLE = "model.embed_tokens.weight"
Profile = dict[str, tuple[tuple[int, ...], ...]]  # input -> (smallest, usual, largest shape)


@dataclass(frozen=True)
class GraphSpec:
    """How one graph is exported."""

    graph: Graph
    module: Callable[[ModelConfig], nn.Module]
    decided_by: Callable[[ModelConfig], object]  # every part of the configuration that the module reads; hashable
    sources: Callable[[CheckpointParts], Sources]  # readers of the module's parameters
    inputs: Callable[[ModelConfig, int, Generator], tuple[Tensor, ...]]  # example inputs with this many rows
    dynamic_axes: tuple[tuple[int, ...], ...] = ()  # of each input; () where `cut` is exported instead
    profiles: Callable[[ModelConfig], list[Profile]] | None = None  # of its TensorRT engine; None: it has none
    cut: Graph | None = None  # the one-layer graph that this one repeats (repeated_layers.py); None: exported whole
    layers: Callable[[ModelConfig], int] = lambda config: 0  # how often `cut` is repeated; 0: exported whole


class Embedding(nn.Module):
    """input_ids int64 [B, S] -> inputs_embeds [B, S, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table = nn.Embedding(config.language.vocab_size, config.language.width)
        self.model = nn.ModuleDict({"embed_tokens": table})  # the published name

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model["embed_tokens"](input_ids)


class DecoderStep(Decoder):
    """The decoder with each cached key and value as a separate argument: past_key_0, past_value_0, past_key_1, ..."""

    def forward(self, inputs_embeds: Tensor, positions: Tensor, bias: Tensor, last: Tensor, *past: Tensor) -> Any:  # type: ignore[override]
        pairs = list(zip(past[::2], past[1::2], strict=True))
        return super().forward(inputs_embeds, positions, bias, last, pairs)


def _vision_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    size = config.pixels.size
    return (torch.randint(0, 256, (rows, size, size, 3), generator=generator, dtype=torch.uint8),)


def _vision_profiles(config: ModelConfig) -> list[Profile]:
    size = config.pixels.size
    single = (1, size, size, 3)
    return [
        {"frames": (single, single, single)},
        {"frames": (single, (config.num_frames, size, size, 3), (MAX_FRAMES, size, size, 3))},
    ]


def _connector_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    features = torch.randn(rows, config.vision.tokens, config.vision.width, generator=generator)
    return features, torch.arange(4) % rows


def _connector_facts(config: ModelConfig) -> object:
    return config.connector, config.vision.grid, config.vision.width, config.language.width


def _cut_connector_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    def maps(grid: int) -> Tensor:
        return torch.randn(rows, config.language.width, grid, grid, generator=generator)

    grid, small = config.vision.grid, downsampled(config.vision.grid, config.connector)
    return *_connector_inputs(config, rows, generator), maps(grid), maps(grid), maps(small), maps(small), maps(small)


def _connector_profiles(config: ModelConfig) -> list[Profile]:
    tokens, width, usual = config.vision.tokens, config.vision.width, config.num_frames
    first = (1, tokens, width)
    return [
        {"vision_features": (first, first, first), "frame_index": ((2,), (IMAGE_STEPS,), (IMAGE_STEPS,))},
        {
            "vision_features": (first, (usual, tokens, width), (MAX_FRAMES, tokens, width)),
            "frame_index": ((2,), (usual,), (MAX_FRAMES,)),
        },
    ]


def _audio(config: ModelConfig) -> AudioConfig:
    assert config.audio is not None
    return config.audio


def _audio_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    return (10.0 * torch.randn(1, _audio(config).rows, _audio(config).bins, generator=generator),)


def _audio_profiles(config: ModelConfig) -> list[Profile]:
    shape = (_audio(config).rows, _audio(config).bins)
    return [{"filterbank": ((1, *shape), (1, *shape), (4, *shape))}]


def _embedding_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    return (torch.randint(0, config.language.vocab_size, (rows, 3), generator=generator),)


def _decoder_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    language = config.language
    new, cached = 3, 5
    bias = torch.zeros(rows, 1, new, cached + new)
    bias[:, :, :, 0] = torch.finfo(torch.float32).min
    return (
        torch.randn(rows, new, language.width, generator=generator),
        torch.arange(cached, cached + new).repeat(rows, 1),
        bias,
        torch.full((rows,), new - 1),
        *(
            torch.randn(rows, language.kv_heads, cached, language.head_dim, generator=generator)
            for _ in range(2 * language.layers)
        ),
    )


def _cut_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    embeds, positions, bias, last, *past = _decoder_inputs(config, rows, generator)
    return positions, bias, last, embeds, embeds, *past[:2]


def _cut_vision_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    tokens = config.vision.tokens + config.vision.family.class_token
    x = torch.randn(rows, tokens, config.vision.width, generator=generator)
    return *_vision_inputs(config, rows, generator), x, x


def _cut_audio_inputs(config: ModelConfig, rows: int, generator: Generator) -> tuple[Tensor, ...]:
    x = torch.randn(1, _audio(config).tokens, _audio(config).width, generator=generator)
    return *_audio_inputs(config, rows, generator), x, x


SPECS = {
    spec.graph: spec
    for spec in (
        GraphSpec(
            VISION_ENCODER,
            module=lambda config: VisionEncoder(config.vision, config.pixels),
            decided_by=lambda config: (config.vision, config.pixels),
            sources=CheckpointParts.vision_sources,
            inputs=_vision_inputs,
            dynamic_axes=((0,),),
            profiles=_vision_profiles,
            cut=CUT_VISION_ENCODER,
            layers=lambda config: config.vision.used_layers,
        ),
        GraphSpec(
            CUT_VISION_ENCODER,
            module=lambda config: CutVisionEncoder(one_layer_of_vision(config.vision), config.pixels),
            decided_by=lambda config: (one_layer_of_vision(config.vision), config.pixels),
            sources=CheckpointParts.vision_sources,
            inputs=_cut_vision_inputs,
            dynamic_axes=((0,), (0,), (0,)),
        ),
        GraphSpec(
            CONNECTOR,
            module=Connector,
            decided_by=_connector_facts,
            sources=CheckpointParts.connector_sources,
            inputs=_connector_inputs,
            profiles=_connector_profiles,
            cut=CUT_CONNECTOR,
            layers=lambda config: BLOCKS,
        ),
        GraphSpec(
            CUT_CONNECTOR,
            module=CutConnector,
            decided_by=_connector_facts,
            sources=CheckpointParts.connector_sources,
            inputs=_cut_connector_inputs,
            dynamic_axes=((0,),) * len(CUT_CONNECTOR.inputs),
        ),
        GraphSpec(
            AUDIO_ENCODER,
            module=lambda config: AudioEncoder(_audio(config), config.language.width),
            decided_by=lambda config: (config.audio, config.language.width),
            sources=CheckpointParts.audio_sources,
            inputs=_audio_inputs,
            dynamic_axes=((0,),),
            profiles=_audio_profiles,
            cut=CUT_AUDIO_ENCODER,
            layers=lambda config: _audio(config).layers,
        ),
        GraphSpec(
            CUT_AUDIO_ENCODER,
            module=lambda config: CutAudioEncoder(_audio(config), config.language.width),
            decided_by=lambda config: (config.audio, config.language.width),
            sources=CheckpointParts.audio_sources,
            inputs=_cut_audio_inputs,
            dynamic_axes=((0,), (0,), (0,)),
        ),
        GraphSpec(
            EMBEDDING,
            module=Embedding,
            decided_by=lambda config: (config.language.vocab_size, config.language.width),
            sources=lambda parts: {_TABLE: parts.language_sources()[_TABLE]},
            inputs=_embedding_inputs,
            dynamic_axes=((0, 1),),
        ),
        GraphSpec(
            DECODER,
            module=lambda config: DecoderStep(config.language),
            decided_by=lambda config: config.language,
            sources=CheckpointParts.language_sources,
            inputs=_decoder_inputs,
            cut=CUT_DECODER,
            layers=lambda config: config.language.layers,
        ),
        GraphSpec(
            CUT_DECODER,
            module=lambda config: CutDecoder(one_layer_of_language(config.language)),
            decided_by=lambda config: one_layer_of_language(config.language),
            sources=CheckpointParts.language_sources,
            inputs=_cut_inputs,
            dynamic_axes=((0, 1), (0, 2, 3), (0,), (0, 1), (0, 1), (0, 2), (0, 2)),
        ),
    )
}
ENGINE_GRAPHS = tuple(graph for graph, spec in SPECS.items() if spec.profiles)  # the graphs that TensorRT runs


def graph_sources(graph: Graph, parts: CheckpointParts) -> Sources:
    """Readers of a graph's parameters."""
    return SPECS[graph].sources(parts)


def example_inputs(
    graph: Graph, config: ModelConfig, rows: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Inputs of the right shapes, from a fixed seed so that two runs are comparable."""
    inputs = SPECS[graph].inputs(config, rows, Generator().manual_seed(0))
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in inputs)


def profiles(graph: Graph, config: ModelConfig) -> list[Profile]:
    """One entry per optimization profile of a graph's engine: an image, then videos."""
    make_profiles = SPECS[graph].profiles
    assert make_profiles is not None, graph
    return make_profiles(config)
