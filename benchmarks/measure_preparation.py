"""Measures video preparation, from file to pixels: the service, a plain loop, decord if installed, and libavcodec's limit.

Clips are encoded to build/bench/clips on first use, which takes minutes; `--clips NAME` selects some by a part of their name.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videollama_benchmarks.preparation.clips import Clip
from videollama_benchmarks.preparation.methods import FRAMES, measure_forked, methods
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record, spread

FOLDER = TREE / "build/bench/clips"
SAMPLES = [
    TREE / "tests/golden/media" / f"{name}.mp4"
    for name in ("sample_demo_1", "sample_demo_3", "sample_demo_9", "1034346401")
]
CLIPS = [
    *(
        Clip("h264", height, seconds, group)
        for height in (720, 1080)
        for group in (48, 250)
        for seconds in (10, 60, 600)
    ),
    *(Clip(codec, 720, seconds, 250) for codec in ("hevc", "vp9", "av1") for seconds in (10, 60, 600)),
    *(Clip("hevc", 1080, seconds, 250) for seconds in (10, 60)),
]
COLUMNS = ("ours", "plain loop", "decord", "limit", "keyframes", "limit of keyframes")
LONG = 300  # length of a clip in seconds from which on the plain loop runs only once
NOTES = (
    f"Processor seconds of one thread (median; minimum to maximum) for {FRAMES} frames at CLIP's 336 pixels, and peak memory above the "
    "start in MB. Each run is a separate process that has the file's bytes in memory; variants run in turn. All pixels are compared "
    "first: `=` equals ours, `-` means different pixels or a failure.",
    "`plain loop` is given the wanted frames and decodes up to the last one; `limit` decodes only the packets that they need, which are "
    "already in memory, and converts and resizes the wanted frames: it neither opens nor searches a file. `keyframes` is ours with "
    "`sampling=keyframes`, which takes other frames, and has a limit of the same kind.",
)


def measure(path: Path, seconds: int, runs: int) -> dict[str, dict[str, Any]]:
    """Method -> seconds, megabytes and equality with ours, or an error. Args: seconds: length of the clip."""
    names = list(methods())
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(runs):
        place = number % len(names)
        for name in names[place:] + names[:place]:
            if number == 0 or name != "plain loop" or seconds < LONG:
                taken[name].append(measure_forked(name, path))
    expected = taken["ours"][0].get("pixels")
    by_method: dict[str, dict[str, Any]] = {}
    for name, results in taken.items():
        errors = [result["error"] for result in results if "error" in result]
        if errors:
            by_method[name] = {"error": errors[0], "equal": False}
            continue
        by_method[name] = {
            "seconds": spread([result["seconds"] for result in results]),
            "megabytes": statistics.median(result["megabytes"] for result in results),
            "equal": expected is not None and all(np.array_equal(result["pixels"], expected) for result in results),
        }
    return by_method


def row(clip: str, by_method: dict[str, dict[str, Any]]) -> list[str]:
    """A clip's cells, one per method of COLUMNS."""
    cells = [clip]
    for name in COLUMNS:
        values = by_method.get(name)
        if values is None or "error" in values:
            cells.append("" if values is None else "- fails")
            continue
        seconds = values["seconds"]
        figures = (
            f"{seconds['median']:.3f} ({seconds['least']:.3f} to {seconds['most']:.3f}), {values['megabytes']:.0f} MB"
        )
        cells.append(f"{'=' if values['equal'] else '-'} {figures}")
    return cells


def ratio(by_method: dict[str, dict[str, Any]], other: str, inverse: bool = False) -> float | None:
    """Seconds of ours over those of another method."""
    if "seconds" not in by_method.get(other, {}) or "seconds" not in by_method["ours"]:
        return None
    value = by_method["ours"]["seconds"]["median"] / by_method[other]["seconds"]["median"]
    return 1 / value if inverse else value


def aims(by_clip: dict[str, dict[str, dict[str, Any]]]) -> list[Aim]:
    def worst(other: str) -> list[tuple[float, str]]:
        return sorted(
            (value, name) for name, by_method in by_clip.items() if (value := ratio(by_method, other)) is not None
        )

    targets = []
    for other, wanted in (("limit", 1.25), ("plain loop", 1.0), ("decord", 1.0)):
        if ratios := worst(other):
            targets.append(Aim(f"ours / {other}, largest: {ratios[-1][1]}", ratios[-1][0], wanted))
    if ratios := worst("plain loop"):
        targets.append(Aim("plain loop / ours, median", 1 / statistics.median(value for value, _ in ratios), 2.0, True))
    for clip in CLIPS:
        minute, ten = (by_clip.get(Clip(clip.codec, clip.height, length, clip.group).name) for length in (60, 600))
        if clip.seconds == 600 and minute and ten and "seconds" in minute["ours"] and "seconds" in ten["ours"]:
            grown = ten["ours"]["seconds"]["median"] / minute["ours"]["seconds"]["median"]
            limit = ten["limit"]["seconds"]["median"] / minute["limit"]["seconds"]["median"]
            targets.append(Aim(f"10 minutes / 1 minute: {clip.name} (of the limit: {limit:.2f})", grown, 1.5))
    for group, wanted in ((250, 10.0), (48, 4.0)):
        gains = {
            name: 1 / value
            for name, values in by_clip.items()
            if name.startswith("h264 1080p")
            and name.endswith(f"groups of {group}")
            and (value := ratio(values, "keyframes", True))
        }
        if gains:
            name = min(gains, key=lambda clip: gains[clip])
            limit = ratio(by_clip[name], "limit of keyframes")
            beside = "" if limit is None else f" (ours / limit of keyframes: {limit:.3g})"
            targets.append(Aim(f"ours / keyframes, smallest: {name}{beside}", gains[name], wanted, True))
    large = [
        values["ours"]["megabytes"]
        for name, values in by_clip.items()
        if "1080p" in name and "seconds" in values["ours"]
    ]
    if large:
        targets.append(Aim("peak memory of a 1080p clip, MB", max(large), 150))
    return targets


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--clips", nargs="*", default=[""], help="Measure only clips with one of these texts in their name."
    )
    parser.add_argument("--runs", type=int, default=5, help="Run each method this many times.")
    options = parser.parse_args(arguments_given)
    clips = [Clip("h264", 720, 10, 48)] if options.fast else CLIPS
    chosen = [(path.stem, path, 10) for path in SAMPLES if any(part in path.stem for part in options.clips)]
    chosen += [
        (clip.name, clip.file(FOLDER), clip.seconds)
        for clip in clips
        if any(part in clip.name for part in options.clips)
    ]
    by_clip = {}
    for name, path, seconds in chosen:
        by_clip[name] = measure(path, seconds, 2 if options.fast else options.runs)
        print(*row(name, by_clip[name]), sep=" | ", flush=True)
    table = Table("", ("clip", *COLUMNS), [row(name, values) for name, values in by_clip.items()])
    record(
        "preparation",
        "Preparation: from file to pixels",
        [table],
        aims(by_clip),
        NOTES,
        by_clip,
        options.fast,
        options.out,
    )


if __name__ == "__main__":
    main()
