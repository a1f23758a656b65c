"""Layouts of published data sets, and checks for missing files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_training.data.samples import MEDIA_KEYS, kind_of, read_list

_SHOWN = 5  # missing files listed in a message


@dataclass(frozen=True)
class Layout:
    """The layout of a data set's folder.

    Args:
        lists: JSON lists of samples, all required.
        folders: media folders, with which the samples' paths begin; all required if `whole`.
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
class MediaReport:
    """The files that lists name, and which of them are missing."""

    samples: Counter[str]  # number of samples by kind: video, image, audio, text
    named: Counter[str]  # number of files by the first folder of their path
    missing: dict[str, list[str]]  # the same key -> messages for missing files

    def describe(self) -> str:
        """The report as lines of text."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.samples.items()))
        lines = [f"{self.samples.total():,} samples ({kinds})"]
        for folder, number in sorted(self.named.items()):
            missing = self.missing.get(folder, [])
            lines.append(f"  {folder}: {number - len(missing):,} of {number:,} files")
            lines += [f"    {message}" for message in missing[:_SHOWN]]
            if len(missing) > _SHOWN:
                lines.append(f"    and {len(missing) - _SHOWN:,} more")
        return "\n".join(lines)


def find_layout(name: str) -> Layout:
    """Raises: InvalidRequest."""
    if name not in LAYOUTS:
        raise InvalidRequest(f"layout is {name!r}; it must be one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def check_folder(folder: Path, layout: Layout) -> None:
    """Raises: BadSample with all missing lists and folders."""
    if not folder.is_dir():
        raise BadSample(f"{folder} is not a folder; give the data set's folder")
    missing = [name for name in layout.lists if not (folder / name).is_file()]
    if layout.whole:
        missing += [f"{name}/" for name in layout.folders if not (folder / name).is_dir()]
    if missing:
        content = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise BadSample(f"{folder} lacks {', '.join(missing)}; it has {content}")


def check_media(lists: tuple[Path, ...], media_folder: Path | None) -> MediaReport:
    """Check once for each file that the lists name. Invalid entries are left to the reading of samples (samples.py).

    Args:
        media_folder: base of relative paths; None: each list's own folder.
    Raises: BadSample if a list cannot be read.
    """
    samples: Counter[str] = Counter()
    named: Counter[str] = Counter()
    missing: dict[str, list[str]] = {}
    checked: set[Path] = set()
    for path in lists:
        root = media_folder or path.parent
        for place, entry in enumerate(read_list(path)):
            kind, name = _media_of(entry)
            samples[kind] += 1
            if name is None or root / name in checked:
                continue
            checked.add(root / name)
            parts = Path(name).parts
            first = parts[0].rstrip("/") + "/" if len(parts) > 1 else "./"
            named[first] += 1
            if not (root / name).exists():
                missing.setdefault(first, []).append(f"sample {entry.get('id', f'#{place}')}: {root / name} is missing")
    return MediaReport(samples, named, missing)


def _media_of(entry: Any) -> tuple[str, str | None]:
    """A sample's kind, and the path of its media."""
    keys = [key for key in MEDIA_KEYS if key in entry] if isinstance(entry, dict) else []
    if len(keys) != 1 or not isinstance(entry[keys[0]], str) or not entry[keys[0]]:
        return "text", None
    return kind_of(keys[0], entry[keys[0]]), entry[keys[0]]
