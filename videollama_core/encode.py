"""Pixels and filterbanks -> media tokens, on converted graphs."""

import numpy as np

from videollama_core.bundle import Bundle
from videollama_core.engine import Engine, OnnxEngine
from videollama_core.errors import InvalidRequest
from videollama_core.frame_plan import plan_encoding
from videollama_core.graphs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph
from videollama_core.video import MAX_FRAMES


class MediaEncoder:
    """Vision encoder, connector and (where the checkpoint hears) audio encoder of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        def load(graph: Graph) -> Engine:
            return OnnxEngine(bundle.graph(graph.name), graph.inputs, graph.outputs)

        self._config = bundle.config
        self._vision, self._connector = load(VISION_ENCODER), load(CONNECTOR)
        self._audio = load(AUDIO_ENCODER) if self._config.audio else None

    def encode(self, frames: np.ndarray, filterbank: np.ndarray | None = None) -> np.ndarray:
        """What is seen, then what is heard: uint8 [T, S, S, 3], float32 [R, F] -> float32 [N, D]; T or R may be 0.

        Raises: InvalidRequest on another size or a wrong number of frames.
        """
        parts = [self._see(frames)] if len(frames) else []
        parts += [self._hear(filterbank)] if filterbank is not None and len(filterbank) else []
        if not parts:
            raise InvalidRequest("there is neither a frame nor sound to encode")
        return np.concatenate(parts)

    def _see(self, frames: np.ndarray) -> np.ndarray:
        size, wanted = self._config.pixels.size, self._config.num_frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (size, size, 3):
            raise InvalidRequest(f"frames are {frames.dtype} {list(frames.shape)}; wanted uint8 [T, {size}, {size}, 3]")
        if len(frames) != 1 and not wanted <= len(frames) <= MAX_FRAMES:
            raise InvalidRequest(f"found {len(frames)} frames; wanted 1 (an image), or {wanted} to {MAX_FRAMES}")
        plan = plan_encoding(frames, self._config)
        features = self._vision.run({"frames": plan.distinct})["vision_features"]
        steps = self._connector.run({"vision_features": features, "frame_index": plan.frame_index})["media_steps"]
        return steps[plan.step_index].reshape(-1, steps.shape[-1])

    def _hear(self, filterbank: np.ndarray) -> np.ndarray:
        config = self._config.audio
        if config is None or self._audio is None:
            raise InvalidRequest("this checkpoint has no audio tower, so it cannot hear")
        if filterbank.dtype != np.float32 or filterbank.shape != (config.rows, config.bins):
            raise InvalidRequest(
                f"the filterbank is {filterbank.dtype} {list(filterbank.shape)}; wanted float32 [{config.rows}, {config.bins}]"
            )
        return self._audio.run({"filterbank": filterbank[None]})["audio_tokens"][0]
