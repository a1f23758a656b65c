"""The converted graphs and their tensors, named once for the converter and the runners."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Graph:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


VISION_ENCODER = Graph("vision_encoder", ("frames",), ("vision_features",))
CONNECTOR = Graph("connector", ("vision_features", "frame_index"), ("media_steps",))
EMBEDDING = Graph("embedding", ("input_ids",), ("inputs_embeds",))
DECODER = Graph("decoder", ("inputs_embeds", "positions", "bias", "last", "past"), ("logits", "new"))
GRAPHS = (VISION_ENCODER, CONNECTOR, EMBEDDING, DECODER)
