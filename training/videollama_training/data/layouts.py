"""Data sets as they are published: which files a folder holds, and what of it is missing."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_training.data.samples import MEDIA_KEYS, kind_of, read_list

_SHOWN = 5  # missing files that a message names


@dataclass(frozen=True)
class Layout:
    """One data set's folder.

    Args:
        lists: JSON lists of samples, all needed.
        folders: of media, which the samples' paths begin with; all needed where `whole`.
        with_audio: lists whose videos are used with their audio track.
    """

    lists: tuple[str, ...]
    folders: tuple[str, ...]
    with_audio: tuple[str, ...] = ()
    whole: bool = True


# The reference's README ("Training Data Structure", "Data Format") and its scripts, of both branches.
LAYOUTS = {
    "videollava_pt": Layout(("valley_llavaimage.json",), ("valley", "llava_image")),
    "videollava_sft": Layout(("videochatgpt_llavaimage_tune.json",), ("videochatgpt_tune", "llava_image_tune")),
    "custom_sft": Layout(("custom.json",), ("videos", "images", "audio", "video", "image"), whole=False),
    "audio_stage1": Layout(("stage1_pretrain.json",), (), whole=False),
    "audio_stage2": Layout(("stage2_audio_text.json",), (), whole=False),
    "audio_stage3": Layout(
        ("stage3_video_audio.json", "stage2_audio_subset_new.json", "stage2_video_subset.json"),
        (),
        with_audio=("stage3_video_audio.json",),
        whole=False,
    ),
}


@dataclass(frozen=True)
class Found:
    """What the lists name, and what of it is there."""

    samples: Counter[str]  # by kind: video, image, audio, text
    named: Counter[str]  # files, by the folder that their path begins with
    missing: dict[str, list[str]]  # those that are not there, with the sample that names them, likewise

    def describe(self) -> str:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.samples.items()))
        lines = [f"{self.samples.total():,} samples ({kinds})"]
        for folder, number in sorted(self.named.items()):
            gone = self.missing.get(folder, [])
            lines.append(f"  {folder}: {number - len(gone):,} of {number:,} files")
            lines += [f"    {reason}" for reason in gone[:_SHOWN]]
            if len(gone) > _SHOWN:
                lines.append(f"    and {len(gone) - _SHOWN:,} more")
        return "\n".join(lines)


def find_layout(name: str) -> Layout:
    """Raises: InvalidRequest."""
    if name not in LAYOUTS:
        raise InvalidRequest(f"layout is {name!r}; wanted one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def check_folder(folder: Path, layout: Layout) -> None:
    """Raises: BadSample that names every list and folder that is missing."""
    if not folder.is_dir():
        raise BadSample(f"{folder} is not a folder; name the data set's folder")
    missing = [name for name in layout.lists if not (folder / name).is_file()]
    if layout.whole:
        missing += [f"{name}/" for name in layout.folders if not (folder / name).is_dir()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise BadSample(f"{folder} lacks {', '.join(missing)}; it holds {there}")


def look_for_media(lists: tuple[Path, ...], media_folder: Path | None) -> Found:
    """Look for each file that the lists name, once. Entries that are no samples are left to who reads them (samples.py).

    Args:
        media_folder: what paths are relative to; None: the list's own folder.
    Raises: BadSample if a list cannot be read.
    """
    samples: Counter[str] = Counter()
    named: Counter[str] = Counter()
    missing: dict[str, list[str]] = {}
    seen: set[Path] = set()
    for path in lists:
        root = media_folder or path.parent
        for place, entry in enumerate(read_list(path)):
            kind, name = _media_of(entry)
            samples[kind] += 1
            if name is None or root / name in seen:
                continue
            seen.add(root / name)
            parts = Path(name).parts
            first = parts[0].rstrip("/") + "/" if len(parts) > 1 else "./"
            named[first] += 1
            if not (root / name).exists():
                missing.setdefault(first, []).append(f"sample {entry.get('id', f'#{place}')}: {root / name} is missing")
    return Found(samples, named, missing)


def _media_of(entry: Any) -> tuple[str, str | None]:
    """Kind of a sample, and the path that it names."""
    keys = [key for key in MEDIA_KEYS if key in entry] if isinstance(entry, dict) else []
    if len(keys) != 1 or not isinstance(entry[keys[0]], str) or not entry[keys[0]]:
        return "text", None
    return kind_of(keys[0], entry[keys[0]]), entry[keys[0]]
