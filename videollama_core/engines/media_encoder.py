"""Pixels and filterbanks -> media tokens. What is the same on every engine; the engines are behind `Encoders`."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from videollama_core.contrast import NO_CONTRAST, NO_PIXELS, Noise, add_noise
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, VISION_ENCODER, Graph
from videollama_core.media.video import MAX_FRAMES
from videollama_core.model.frame_plan import plan_encoding
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest

KEPT_BYTES = 256 * 2**20  # of media tokens on a GPU: about 25 videos of a 7B checkpoint


def media_hash(frames: np.ndarray, filterbank: np.ndarray | None, noise: Noise | None = None) -> int:
    """64 bits of what is encoded, never 0: the language model keeps keys and values of media positions by it."""
    about = repr(frames.shape) + (repr(noise) if noise else "")
    digest = hashlib.blake2b(about.encode(), digest_size=8)
    for array in (frames, filterbank):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest(), "little") or 1


class Encoders(Protocol):
    """The encoders of one checkpoint on one engine. U distinct frames, T' of them in time, D language model width.

    Media tokens are an array, or a tensor on the engine's device, whose work may still be under way.
    """

    def encode_frames(self, frames: np.ndarray, frame_index: np.ndarray) -> Any:
        """uint8 [U, S, S, 3], int64 [T'] -> [steps, tokens per step, D], float32 (float16 on TensorRT).

        Frames with noise are float32 (contrast.py), except on TensorRT.
        """
        ...

    def encode_audio(self, filterbank: np.ndarray) -> Any:
        """float32 [R, F] -> [N, D], in the same type."""
        ...


class OnnxEncoders:
    """The converted graphs on ONNX Runtime."""

    def __init__(self, bundle: Bundle) -> None:
        def load(graph: Graph) -> OnnxEngine:
            return OnnxEngine(bundle.graph(graph.name), graph.inputs, graph.outputs)

        self._vision, self._connector = load(VISION_ENCODER), load(CONNECTOR)
        self._audio = load(AUDIO_ENCODER) if bundle.config.audio else None

    def encode_frames(self, frames: np.ndarray, frame_index: np.ndarray) -> np.ndarray:
        if frames.dtype != np.uint8 and "frames" not in self._vision.floats:
            raise ArtifactMismatch(
                "this bundle is older than vcd_alpha, and its vision graph takes whole colours: convert again"
            )
        features = self._vision.run({"frames": frames})["vision_features"]
        return self._connector.run({"vision_features": features, "frame_index": frame_index})["media_steps"]

    def encode_audio(self, filterbank: np.ndarray) -> np.ndarray:
        assert self._audio is not None
        return self._audio.run({"filterbank": filterbank[None]})["audio_tokens"][0]


def load_encoders(bundle: Bundle) -> Encoders:
    """The encoders on the engine that the bundle was converted for. Raises: ArtifactMismatch."""
    encoders: Encoders = bundle.encoder_engine.load_encoders()(bundle)
    return encoders


class MediaTokenCache:
    """The newest media tokens by their media's hash: the response cache does not take tensors of a GPU."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._tables: OrderedDict[int, Any] = OrderedDict()

    def get(self, media_hash: int, make: Callable[[], Any]) -> Any:
        """The kept table [N, D], or one that is made now and kept in the place of the oldest."""
        if media_hash in self._tables:
            self._tables.move_to_end(media_hash)
            return self._tables[media_hash]
        table = make()
        self._tables[media_hash] = table
        self._bytes += table.nbytes
        while self._bytes > self._most_bytes:
            self._bytes -= self._tables.popitem(last=False)[1].nbytes
        return table


class MediaEncoder:
    """Vision encoder, connector and (with an audio tower) audio encoder of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._config, self._encoders = bundle.config, load_encoders(bundle)
        self._takes_noise = bundle.encoder_engine.takes_noise
        self._kept = MediaTokenCache() if bundle.keeps_media_tokens_on_gpu else None

    def encode_media(
        self, frames: np.ndarray, filterbank: np.ndarray | None = None, noise: Noise | None = None
    ) -> tuple[Any, int]:
        """`encode`, and the media's hash. Where tables stay on the GPU: a tensor there, made once for equal media."""
        key = media_hash(frames, filterbank, noise)
        if self._kept is None:
            return self.encode(frames, filterbank, noise), key
        return self._kept.get(key, lambda: _when_done(self._encode(frames, filterbank, noise))), key

    def encode(
        self, frames: np.ndarray, filterbank: np.ndarray | None = None, noise: Noise | None = None
    ) -> np.ndarray:
        """Vision tokens, then audio tokens: uint8 [T, S, S, 3], float32 [R, F] -> [N, D] as `Encoders` types it; T or R may be 0.

        With noise [2N, D]: then the same of noised frames, and the audio again.
        Raises: InvalidRequest on another size or a wrong number of frames, or noise that cannot be.
        """
        return to_host(self._encode(frames, filterbank, noise))

    def _encode(self, frames: np.ndarray, filterbank: np.ndarray | None, noise: Noise | None) -> Any:
        vision = [self._encode_frames(frames)] if len(frames) else []
        audio = [self._encode_audio(filterbank)] if filterbank is not None and len(filterbank) else []
        if not vision + audio:
            raise InvalidRequest("there is neither a frame nor audio to encode")
        parts = vision + audio
        if noise is not None:
            parts += [self._encode_noised(frames, noise), *audio]
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def _encode_noised(self, frames: np.ndarray, noise: Noise) -> Any:
        if not self._takes_noise:
            raise InvalidRequest(NO_CONTRAST)
        if not len(frames):
            raise InvalidRequest(NO_PIXELS)
        return self._steps(add_noise(frames, noise, self._config.pixels))

    def _encode_frames(self, frames: np.ndarray) -> Any:
        size, wanted = self._config.pixels.size, self._config.num_frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (size, size, 3):
            raise InvalidRequest(f"frames are {frames.dtype} {list(frames.shape)}; wanted uint8 [T, {size}, {size}, 3]")
        if len(frames) != 1 and not wanted <= len(frames) <= MAX_FRAMES:
            raise InvalidRequest(f"found {len(frames)} frames; wanted 1 (an image), or {wanted} to {MAX_FRAMES}")
        return self._steps(frames)

    def _steps(self, frames: np.ndarray) -> Any:
        plan = plan_encoding(frames, self._config)
        steps = self._encoders.encode_frames(plan.distinct, plan.frame_index)
        return steps[plan.step_index].reshape(-1, steps.shape[-1])

    def _encode_audio(self, filterbank: np.ndarray) -> Any:
        config = self._config.audio
        if config is None:
            raise InvalidRequest("this checkpoint has no audio tower, so it takes no audio")
        wanted = (config.rows, config.bins)
        if filterbank.dtype != np.float32 or filterbank.shape != wanted:
            raise InvalidRequest(
                f"the filterbank is {filterbank.dtype} {list(filterbank.shape)}; wanted float32 {list(wanted)}"
            )
        return self._encoders.encode_audio(filterbank)


def to_host(table: Any) -> np.ndarray:
    """Media tokens as an array, once they are there."""
    return table if isinstance(table, np.ndarray) else table.cpu().numpy()


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


def _when_done(table: Any) -> Any:
    """The table, whole: who takes it over works on another stream, or in another process."""
    import torch

    if table.is_cuda:
        torch.cuda.synchronize(table.device)
    return table
