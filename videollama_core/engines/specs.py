"""The converted graphs and their tensors, named once for the converter and the runners."""

from dataclasses import dataclass

from videollama_core.model.config import ModelConfig, VisionConfig


@dataclass(frozen=True)
class Graph:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_layer: tuple[str, ...] = ()  # inputs that each layer of the language model has of its own, behind the others

    def inputs_of(self, config: ModelConfig) -> tuple[str, ...]:
        layers = range(config.language.layers)
        return (*self.inputs, *(f"{name}_{layer}" for layer in layers for name in self.per_layer))


VISION_ENCODER = Graph("vision_encoder", ("frames",), ("vision_features",))
CONNECTOR = Graph("connector", ("vision_features", "frame_index"), ("media_steps",))
AUDIO_ENCODER = Graph("audio_encoder", ("filterbank",), ("audio_tokens",))
EMBEDDING = Graph("embedding", ("input_ids",), ("inputs_embeds",))
# A tensor a layer: ONNX Runtime reads each where it lies, and would copy a slice of one for all.
DECODER = Graph(
    "decoder",
    ("inputs_embeds", "positions", "bias", "last"),
    ("logits", "new"),
    per_layer=("past_key", "past_value"),
)
GRAPHS = (VISION_ENCODER, CONNECTOR, AUDIO_ENCODER, EMBEDDING, DECODER)


def graphs_of(config: ModelConfig) -> tuple[Graph, ...]:
    """The graphs of one checkpoint: without an audio tower there is no audio encoder."""
    return tuple(graph for graph in GRAPHS if graph is not AUDIO_ENCODER or config.audio is not None)


MOST_FRAMES_PER_RUN = 8  # of the tower: what a GPU is busy with, and as many as a video has at least
_OPERATIONS_PER_RUN = 2e10  # of a CPU: about 0.2 s of two cores


def frames_per_run(vision: VisionConfig, on_gpu: bool) -> int:
    """How many frames the tower is given at once. It depends on nothing else, so that a frame's features do not either.

    On a CPU as many as keep others waiting for a moment only: one frame of a published tower, eight of a tiny one.
    """
    weights = vision.used_layers * vision.width * (4 * vision.width + 2 * vision.mlp_width)
    operations = 2 * weights * vision.tokens
    most = MOST_FRAMES_PER_RUN if on_gpu else int(_OPERATIONS_PER_RUN / operations)
    return min(max(most, 1), MOST_FRAMES_PER_RUN)
