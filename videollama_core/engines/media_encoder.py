"""Pixels and filterbanks -> media tokens: the engine-independent part; the engines implement `Encoders`."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from videollama_core.contrast import NO_CONTRAST, NO_PIXELS, Noise, add_noise
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_cache import MediaCache
from videollama_core.media.video import MAX_FRAMES
from videollama_core.model.frame_plan import EncodingPlan, plan_encoding
from videollama_core.protocol.errors import InvalidRequest

_SECRET = secrets.token_bytes(32)  # of this process: without it nobody can search for colliding media


def media_digest(frames: np.ndarray, filterbank: np.ndarray | None, noise: Noise | None = None) -> bytes:
    """32-byte digest of the encoder's inputs: keyed BLAKE2b, different in each process."""
    about = repr((frames.shape, None if filterbank is None else filterbank.shape, noise)).encode()
    digest = hashlib.blake2b(len(about).to_bytes(8, "little") + about, digest_size=32, key=_SECRET)
    for array in (frames, filterbank):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def media_hash(digest: bytes) -> int:
    """64 bits of a digest, never 0: identifies media positions for the language model's KV cache reuse."""
    return int.from_bytes(digest[:8], "little") or 1


class Encoders(Protocol):
    """The encoders of one checkpoint on one engine. U: distinct frames, T': frames in time, D: width of the language model.

    Features and media tokens are arrays, or tensors on the engine's device, possibly still being computed.
    """

    frames_per_run: int  # of the tower, at most (specs.py)
    shares_runs: bool  # whether every run has `frames_per_run` frames, of several requests or padded (specs.py)

    def encode_frames(self, frames: np.ndarray) -> Any:
        """uint8 [K, S, S, 3] -> features [K, P, C], which the next run may overwrite.

        Frames with noise are float32 (contrast.py), except on TensorRT.
        """
        ...

    def connect(self, features: Any, frame_index: np.ndarray) -> Any:
        """[U, P, C], int64 [T'] -> [steps, tokens per step, D], float32 (float16 on TensorRT)."""
        ...

    def encode_audio(self, filterbank: np.ndarray) -> Any:
        """float32 [R, F] -> [N, D], of the same dtype as the media tokens of `connect`."""
        ...


def load_encoders(bundle: Bundle) -> Encoders:
    """The encoders on the engine that the bundle was converted for. Raises: ArtifactMismatch."""
    encoders: Encoders = bundle.encoder_engine.load_encoders()(bundle)
    return encoders


class Encoding:
    """The progress of one request's media through the encoders; `MediaEncoder.run` advances it one run at a time."""

    def __init__(self, plans: list[EncodingPlan], filterbank: np.ndarray | None, digest: bytes) -> None:
        self.digest = digest
        self.table: Any = None  # the media tokens, once done
        self.plans, self.filterbank = plans, filterbank
        self.features: list[Any] = [None] * len(plans)
        self._done = [0] * len(plans)  # pictures that the tower has encoded

    @property
    def is_done(self) -> bool:
        return self.table is not None

    @property
    def pictures(self) -> int:
        """How many pictures the tower must encode."""
        return sum(len(plan.distinct) for plan in self.plans)

    @property
    def pictures_left(self) -> int:
        return self.pictures - sum(self._done)

    @property
    def has_begun(self) -> bool:
        """Whether the tower has encoded a picture of it."""
        return any(self._done)

    @property
    def is_picture(self) -> bool:
        """Whether it has a single picture, which runs alone: padding would make it as expensive as a video."""
        return all(len(plan.distinct) == 1 for plan in self.plans)

    def keep(self) -> None:
        """Copy inputs that are still in the caller's memory."""
        self.plans = [replace(plan, distinct=plan.distinct.copy()) for plan in self.plans]
        self.filterbank = None if self.filterbank is None else self.filterbank.copy()

    def take(self, most: int) -> np.ndarray:
        """The next pictures of one plan: uint8 [at most `most`, S, S, 3], or float32 with noise (contrast.py)."""
        number = self._next_plan()
        done = self._done[number]
        return self.plans[number].distinct[done : done + most]

    def put(self, features: Any) -> None:
        """Store the features of the pictures that `take` returned last."""
        number = self._next_plan()
        done = self._done[number]
        if self.features[number] is None:
            shape = (len(self.plans[number].distinct), *features.shape[1:])
            is_array = isinstance(features, np.ndarray)
            self.features[number] = np.empty(shape, features.dtype) if is_array else features.new_empty(shape)
        self.features[number][done : done + len(features)] = features
        self._done[number] += len(features)

    def _next_plan(self) -> int:
        return next(n for n, plan in enumerate(self.plans) if self._done[n] < len(plan.distinct))


class MediaEncoder:
    """Vision encoder, connector and (with an audio tower) audio encoder of one bundle.

    Requests take turns: `begin` for each, then `run` until each is done. The request alone decides the shapes in which the
    tower runs, on a GPU one picture or `frames_per_run` frames, on a CPU as many frames as it has: products of another shape
    may differ in the last bits, and an answer must not depend on concurrent requests.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._config, self._encoders = bundle.config, load_encoders(bundle)
        self._takes_noise = bundle.encoder_engine.takes_noise
        self._kept: MediaCache[Any] | None = MediaCache() if bundle.keeps_media_tokens_on_gpu else None

    def encode_media(
        self, frames: np.ndarray, filterbank: np.ndarray | None = None, noise: Noise | None = None
    ) -> tuple[Any, int]:
        """Like `encode`, and the media's hash. If tables stay on the GPU: a tensor there, computed once for equal media."""
        encoding = self.begin(frames, filterbank, noise)
        while not encoding.is_done:
            self.run(encoding)
        return encoding.table, media_hash(encoding.digest)

    def encode(
        self, frames: np.ndarray, filterbank: np.ndarray | None = None, noise: Noise | None = None
    ) -> np.ndarray:
        """uint8 [T, S, S, 3], float32 [R, F] -> vision tokens, then audio tokens: [N, D], of the dtype of `Encoders`.

        T or R may be 0. With noise [2N, D]: followed by the tokens of the noised frames and the audio again.
        Raises: InvalidRequest for another size or number of frames, or noise that the engine or the media do not allow.
        """
        return to_host(self.encode_media(frames, filterbank, noise)[0])

    def begin(self, frames: np.ndarray, filterbank: np.ndarray | None = None, noise: Noise | None = None) -> Encoding:
        """Check a request as for `encode` and prepare it without running anything; done at once if its table is cached.

        The arrays must stay unchanged until it is done, or `keep` was called.
        """
        filterbank = filterbank if filterbank is not None and len(filterbank) else None
        if filterbank is not None:
            self._check_audio(filterbank)
        plans = []
        if len(frames):
            self._check_frames(frames)
            plans.append(plan_encoding(frames, self._config))
        elif filterbank is None:
            raise InvalidRequest("the request has neither frames nor audio to encode")
        if noise is not None:
            if not self._takes_noise:
                raise InvalidRequest(NO_CONTRAST)
            if not len(frames):
                raise InvalidRequest(NO_PIXELS)
            plans.append(plan_encoding(add_noise(frames, noise, self._config.pixels), self._config))
        encoding = Encoding(plans, filterbank, media_digest(frames, filterbank, noise))
        if self._kept is not None:
            encoding.table = self._kept.known(encoding.digest)
        return encoding

    def run(self, first: Encoding, others: Iterable[Encoding] = ()) -> None:
        """One run of the tower for `first`, if runs are shared with pictures of the others; after its last, connector and audio.

        Args:
            others: begun earlier or later; they are finished in their own turn.
        """
        if first.pictures_left:
            self._run_tower(first, others)
        if not first.pictures_left:
            first.table = self._finish(first)
            first.plans, first.features, first.filterbank = [], [], None

    def feature_bytes(self, encoding: Encoding) -> int:
        """Upper bound of the memory that its features take, from its first run to its last."""
        vision = self._config.vision
        return encoding.pictures * vision.tokens * vision.width * 4

    def _run_tower(self, first: Encoding, others: Iterable[Encoding]) -> None:
        if not self._encoders.shares_runs:
            first.put(self._encoders.encode_frames(first.take(self._encoders.frames_per_run)))
            return
        size = room = 1 if first.is_picture else self._encoders.frames_per_run
        taken: list[tuple[Encoding, np.ndarray]] = []
        for encoding in (first, *others):
            if room and encoding.pictures_left and encoding.is_picture == first.is_picture:
                taken.append((encoding, encoding.take(room)))
                room -= len(taken[-1][1])
        pictures = [chunk for _, chunk in taken]
        if len(pictures) > 1 or room:  # otherwise they fill a run without a copy
            pictures.append(np.zeros((room, *pictures[0].shape[1:]), np.uint8))
        features = self._encoders.encode_frames(pictures[0] if len(pictures) == 1 else np.concatenate(pictures))
        assert len(features) == size
        begin = 0
        for encoding, chunk in taken:
            encoding.put(features[begin : begin + len(chunk)])
            begin += len(chunk)

    def _finish(self, encoding: Encoding) -> Any:
        vision = [self._steps(*pair) for pair in zip(encoding.plans, encoding.features, strict=True)]
        audio = [] if encoding.filterbank is None else [self._encoders.encode_audio(encoding.filterbank)]
        parts = [part for tokens in vision for part in (tokens, *audio)] if vision else audio
        table = parts[0] if len(parts) == 1 else _concatenate(parts)
        return table if self._kept is None else self._kept.keep(encoding.digest, _when_done(table))

    def _steps(self, plan: EncodingPlan, features: Any) -> Any:
        steps = self._encoders.connect(features, plan.frame_index)
        if not np.array_equal(plan.step_index, np.arange(len(steps))):
            steps = steps[plan.step_index]
        return steps.reshape(-1, steps.shape[-1])

    def _check_frames(self, frames: np.ndarray) -> None:
        size, least = self._config.pixels.size, self._config.num_frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (size, size, 3):
            raise InvalidRequest(
                f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [T, {size}, {size}, 3]"
            )
        if len(frames) != 1 and not least <= len(frames) <= MAX_FRAMES:
            raise InvalidRequest(f"found {len(frames)} frames; expected 1 (an image), or {least} to {MAX_FRAMES}")

    def _check_audio(self, filterbank: np.ndarray) -> None:
        config = self._config.audio
        if config is None:
            raise InvalidRequest("this checkpoint has no audio tower, so it takes no audio")
        expected = (config.rows, config.bins)
        if filterbank.dtype != np.float32 or filterbank.shape != expected:
            raise InvalidRequest(
                f"the filterbank is {filterbank.dtype} {list(filterbank.shape)}; expected float32 {list(expected)}"
            )


def to_host(table: Any) -> np.ndarray:
    """Media tokens as an array on the host; waits until they are computed."""
    return table if isinstance(table, np.ndarray) else table.cpu().numpy()


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


def _when_done(table: Any) -> Any:
    """The table, once it is computed: its readers use another stream, or are another process."""
    import torch

    if table.is_cuda:
        torch.cuda.synchronize(table.device)
    return table
