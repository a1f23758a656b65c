"""The converted graphs and their tensors, named once for the converter and the runners."""

from dataclasses import dataclass

from videollama_core.model.config import ModelConfig


@dataclass(frozen=True)
class Graph:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


VISION_ENCODER = Graph("vision_encoder", ("frames",), ("vision_features",))
CONNECTOR = Graph("connector", ("vision_features", "frame_index"), ("media_steps",))
AUDIO_ENCODER = Graph("audio_encoder", ("filterbank",), ("audio_tokens",))
EMBEDDING = Graph("embedding", ("input_ids",), ("inputs_embeds",))
DECODER = Graph("decoder", ("inputs_embeds", "positions", "bias", "last", "past"), ("logits", "new"))
GRAPHS = (VISION_ENCODER, CONNECTOR, AUDIO_ENCODER, EMBEDDING, DECODER)


def graphs_of(config: ModelConfig) -> tuple[Graph, ...]:
    """The graphs of one checkpoint: without an audio tower there is no audio encoder."""
    return tuple(graph for graph in GRAPHS if graph is not AUDIO_ENCODER or config.audio is not None)
