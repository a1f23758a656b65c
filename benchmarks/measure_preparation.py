"""What a video costs from file to pixels: the service, a plain loop, decord where it is installed, and libavcodec's limit.

Clips are made in build/bench/clips on first use (minutes); `--clips NAME` chooses some by a part of their name.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videollama_benchmarks.preparation.clips import Clip
from videollama_benchmarks.preparation.methods import FRAMES, measured, methods
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
LONG = 300  # seconds of a clip from which the plain loop runs once only
NOTES = (
    f"Processor seconds of one thread (median; least to most) for {FRAMES} frames at CLIP's 336 pixels, each run in a process of its "
    "own that holds the file's bytes, variants in turn; and the most memory above the start, MB. All pixels are compared first: "
    "`=` equal to ours, `-` the method gave others, or none.",
    "`plain loop` knows which frames are wanted and decodes up to the last; `limit` decodes the packets that they need, which lie "
    "in memory already, and converts and resizes the wanted pictures: it opens and searches no file. `keyframes` is ours with "
    "`sampling=keyframes`, which takes other frames, and has a limit of the same kind.",
)


def measure(path: Path, seconds: int, runs: int) -> dict[str, dict[str, Any]]:
    names = list(methods())
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(runs):
        place = number % len(names)
        for name in names[place:] + names[:place]:
            if number == 0 or name != "plain loop" or seconds < LONG:
                taken[name].append(measured(name, path))
    wanted = taken["ours"][0].get("pixels")
    found: dict[str, dict[str, Any]] = {}
    for name, results in taken.items():
        errors = [result["error"] for result in results if "error" in result]
        if errors:
            found[name] = {"error": errors[0], "equal": False}
            continue
        found[name] = {
            "seconds": spread([result["seconds"] for result in results]),
            "megabytes": statistics.median(result["megabytes"] for result in results),
            "equal": wanted is not None and all(np.array_equal(result["pixels"], wanted) for result in results),
        }
    return found


def row(clip: str, found: dict[str, dict[str, Any]]) -> list[str]:
    cells = [clip]
    for name in COLUMNS:
        values = found.get(name)
        if values is None or "error" in values:
            cells.append("" if values is None else "- fails")
            continue
        seconds = values["seconds"]
        told = (
            f"{seconds['median']:.3f} ({seconds['least']:.3f} to {seconds['most']:.3f}), {values['megabytes']:.0f} MB"
        )
        cells.append(f"{'=' if values['equal'] else '-'} {told}")
    return cells


def ratio(found: dict[str, dict[str, Any]], other: str, inverse: bool = False) -> float | None:
    """Seconds of ours over those of another method."""
    if "seconds" not in found.get(other, {}) or "seconds" not in found["ours"]:
        return None
    value = found["ours"]["seconds"]["median"] / found[other]["seconds"]["median"]
    return 1 / value if inverse else value


def aims(all_found: dict[str, dict[str, dict[str, Any]]]) -> list[Aim]:
    def worst(other: str) -> list[tuple[float, str]]:
        return sorted((value, name) for name, found in all_found.items() if (value := ratio(found, other)) is not None)

    found = []
    for other, wanted in (("limit", 1.25), ("plain loop", 1.0), ("decord", 1.0)):
        if ratios := worst(other):
            found.append(Aim(f"ours / {other}, largest: {ratios[-1][1]}", ratios[-1][0], wanted))
    if ratios := worst("plain loop"):
        found.append(Aim("plain loop / ours, median", 1 / statistics.median(value for value, _ in ratios), 2.0, True))
    for clip in CLIPS:
        minute, ten = (all_found.get(Clip(clip.codec, clip.height, length, clip.group).name) for length in (60, 600))
        if clip.seconds == 600 and minute and ten and "seconds" in minute["ours"] and "seconds" in ten["ours"]:
            grown = ten["ours"]["seconds"]["median"] / minute["ours"]["seconds"]["median"]
            found.append(Aim(f"10 minutes / 1 minute: {clip.name}", grown, 1.5))
    for group, wanted in ((250, 10.0), (48, 4.0)):
        gains = {
            name: 1 / value
            for name, values in all_found.items()
            if name.startswith("h264 1080p")
            and name.endswith(f"groups of {group}")
            and (value := ratio(values, "keyframes", True))
        }
        if gains:
            name = min(gains, key=lambda one: gains[one])
            found.append(Aim(f"ours / keyframes, least: {name}", gains[name], wanted, True))
    large = [
        values["ours"]["megabytes"]
        for name, values in all_found.items()
        if "1080p" in name and "seconds" in values["ours"]
    ]
    if large:
        found.append(Aim("most memory of a 1080p clip, MB", max(large), 150))
    return found


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments_given)
    clips = [Clip("h264", 720, 10, 48)] if options.fast else CLIPS
    chosen = [(path.stem, path, 10) for path in SAMPLES if any(part in path.stem for part in options.clips)]
    chosen += [
        (clip.name, clip.file(FOLDER), clip.seconds)
        for clip in clips
        if any(part in clip.name for part in options.clips)
    ]
    found = {}
    for name, path, seconds in chosen:
        found[name] = measure(path, seconds, 2 if options.fast else options.runs)
        print(*row(name, found[name]), sep=" | ", flush=True)
    table = Table("", ("clip", *COLUMNS), [row(name, values) for name, values in found.items()])
    record(
        "preparation", "Preparation: from file to pixels", [table], aims(found), NOTES, found, options.fast, options.out
    )


if __name__ == "__main__":
    main()
