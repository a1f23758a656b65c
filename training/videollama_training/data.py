"""Samples -> batches: media decoded as the service decodes it, questions about the same media packed into one row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from videollama_core.config import ModelConfig
from videollama_core.errors import BadSample, VideoLlamaError
from videollama_core.pixels import to_tower_size
from videollama_core.text import Tokenizer
from videollama_core.video import Segment, load_media
from videollama_training.model import PADDING, SHARED, Batch
from videollama_training.samples import Sample, Tokens, tokenize

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Some conversations about one media."""

    frames: np.ndarray | None  # uint8 [T, S, S, 3]; T = 1 is an image
    tokens: tuple[Tokens, ...]  # all with the same ids before the media


@dataclass
class BadSamples:
    """What could not be used. Appended to a file, so that worker processes share it."""

    path: Path | None  # None: the first one ends the run

    def add(self, error: BadSample) -> None:
        if self.path is None:
            raise error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": str(error)}, ensure_ascii=False) + "\n")

    def count(self) -> int:
        if self.path is None or not self.path.exists():
            return 0
        return len(set(self.path.read_text("utf-8").splitlines()))


@dataclass
class RowDataset(Dataset):
    """Rows of at most `questions` samples about the same media.

    Args:
        cache_bytes: decoded frames are kept until they fill so much memory.
    """

    samples: Sequence[Sample]
    tokenizer: Tokenizer
    config: ModelConfig
    plain: bool = False
    questions: int = 8
    pad_to_square: bool = False
    bad: BadSamples = field(default_factory=lambda: BadSamples(None))
    cache_bytes: int = 2 * 2**30
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        groups: dict[object, list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.kind, sample.media), []).append(sample)  # text alone is one group
        self._rows = [
            group[place : place + self.questions]
            for group in groups.values()
            for place in range(0, len(group), self.questions)
        ]
        self._cache: dict[Path, np.ndarray] = {}
        self._cached = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        """A row; where nothing of it can be used, the next one that can.

        Raises: BadSample when bad samples end the run, or none is left.
        """
        for step in range(len(self._rows)):
            row = self._read(self._rows[(index + step) % len(self._rows)])
            if row.tokens:
                return row
        raise BadSample(f"none of {len(self.samples)} samples can be used; the reasons are in {self.bad.path}")

    def _read(self, samples: Sequence[Sample]) -> Row:
        tokens: list[Tokens] = []
        for sample in samples:
            try:
                found = tokenize(sample, self.tokenizer, self.plain)
                length = len(found.before) + len(found.after) + (self.config.media_tokens if sample.media else 0)
                if length > self.max_tokens:
                    raise BadSample(f"sample {sample.name}: {length} tokens; the limit is {self.max_tokens}")
                if not any(found.is_target):
                    raise BadSample(f"sample {sample.name}: the chat template leaves nothing to learn")
                tokens.append(found)
            except BadSample as error:
                self.bad.add(error)
        media = samples[0].media
        if media is None or not tokens:
            return Row(None, tuple(tokens))
        try:
            return Row(self.frames(samples[0].kind, media), tuple(tokens))
        except (VideoLlamaError, OSError) as error:
            for sample in samples:
                self.bad.add(BadSample(f"sample {sample.name}: {media}: {error}"))
            return Row(None, ())

    def frames(self, kind: str, media: Path) -> np.ndarray:
        """uint8 [T, S, S, 3]."""
        if media in self._cache:
            return self._cache[media]
        if media.is_dir():
            kind, files = "folder", [path.read_bytes() for path in sorted(media.iterdir()) if path.is_file()]
        else:
            files = [media.read_bytes()]
        chosen = load_media(kind, files, Segment(), self.config.num_frames)
        frames = to_tower_size(chosen.rgb, self.config.pixels, self.pad_to_square)
        if self._cached + frames.nbytes <= self.cache_bytes:
            self._cache[media] = frames
            self._cached += frames.nbytes
        return frames


@dataclass(frozen=True)
class Collator:
    """Rows -> Batch."""

    config: ModelConfig

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        vocab_size, count = self.config.language.vocab_size, self.config.media_tokens
        frames: list[np.ndarray] = []
        frame_index: list[np.ndarray] = []
        media: list[int] = []
        columns: list[dict[str, list[int]]] = []
        source, target = [], []
        taken = 0
        for number, row in enumerate(rows):
            media.append(-1 if row.frames is None else len(frame_index))
            if row.frames is not None:
                frames.append(row.frames)
                places = np.arange(taken, taken + len(row.frames))
                frame_index.append(np.resize(places, self.config.num_frames))
                taken += len(row.frames)
            tokens_of_media = [] if row.frames is None else list(range(vocab_size, vocab_size + count))
            shared = [*row.tokens[0].before, *tokens_of_media]
            ids, positions, question = list(shared), list(range(len(shared))), [SHARED] * len(shared)
            for place, tokens in enumerate(row.tokens, start=1):
                start = len(ids)
                for offset, (token, wanted) in enumerate(zip(tokens.after, tokens.is_target, strict=True)):
                    if wanted and (offset or shared):
                        source.append((number, start + offset - 1 if offset else len(shared) - 1))
                        target.append(token)
                ids += tokens.after
                positions += range(len(shared), len(shared) + len(tokens.after))
                question += [place] * len(tokens.after)
            columns.append({"ids": ids, "positions": positions, "question": question})
        length = max(len(column["ids"]) for column in columns)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([column[name] + [value] * (length - len(column[name])) for column in columns])

        side = self.config.pixels.size
        return Batch(
            frames=torch.from_numpy(np.concatenate(frames) if frames else np.zeros((0, side, side, 3), np.uint8)),
            frame_index=torch.from_numpy(
                np.stack(frame_index) if frame_index else np.zeros((0, self.config.num_frames), np.int64)
            ),
            input_ids=padded("ids", 0),
            positions=padded("positions", 0),
            question=padded("question", PADDING),
            media=torch.tensor(media),
            source=torch.tensor(source).view(-1, 2),
            target=torch.tensor(target),
        ).to_dict()
