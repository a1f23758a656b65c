"""The converted graphs and the names of their tensors, shared by the converter and the runners."""

from dataclasses import dataclass

from videollama_core.model.config import ModelConfig, VisionConfig


@dataclass(frozen=True)
class Graph:
    """The name of a converted graph and of its tensors, in order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_layer: tuple[str, ...] = ()  # inputs that exist once per layer of the language model, after the others

    def inputs_of(self, config: ModelConfig) -> tuple[str, ...]:
        """Names of all inputs in order, those of each layer included."""
        layers = range(config.language.layers)
        return (*self.inputs, *(f"{name}_{layer}" for layer in layers for name in self.per_layer))


VISION_ENCODER = Graph("vision_encoder", ("frames",), ("vision_features",))
CONNECTOR = Graph("connector", ("vision_features", "frame_index"), ("media_steps",))
AUDIO_ENCODER = Graph("audio_encoder", ("filterbank",), ("audio_tokens",))
EMBEDDING = Graph("embedding", ("input_ids",), ("inputs_embeds",))
# One tensor per layer: ONNX Runtime reads each in place, but would copy slices of a single tensor.
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


MOST_FRAMES_PER_RUN = 8  # of the tower: enough to occupy a GPU, and the least frames of a video
_OPERATIONS_PER_RUN = 2e10  # on a CPU: about 0.2 s of two cores


def frames_per_run(vision: VisionConfig, on_gpu: bool) -> int:
    """How many frames the tower takes at once, at most. It depends on the tower and device alone, so that features do too.

    On a GPU, few frames take as long as many, so that runs are filled with other requests' frames or padded. On a CPU the time
    is proportional to the frames, and a run is short enough not to keep other requests waiting: one frame of a published
    tower, up to eight of a tiny one.
    """
    weights = vision.used_layers * vision.width * (4 * vision.width + 2 * vision.mlp_width)
    operations = 2 * weights * vision.tokens
    most = MOST_FRAMES_PER_RUN if on_gpu else int(_OPERATIONS_PER_RUN / operations)
    return min(max(most, 1), MOST_FRAMES_PER_RUN)
