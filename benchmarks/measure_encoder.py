"""A tower of a published size beside a small decoder: first and repeated questions, pictures and videos, eight at once."""

import tempfile
from pathlib import Path
from typing import Any

from videollama_benchmarks.overhead.served import serving
from videollama_benchmarks.real_tower import measure
from videollama_benchmarks.real_tower.checkpoint import PUBLISHED, make_bundle
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record

CLIP = TREE / "benchmarks/shapes/held_out/00000.mp4"
FAST_LAYERS = 3
NOTES = (
    f"The demo's checkpoint with the tower of {PUBLISHED} (CLIP-L/336), whose weights are random like the connector's, float32 on ONNX Runtime; with --fast "
    f"{FAST_LAYERS} layers of it. The decoder is the demo's. Every answer of the wave is checked to be that of a question alone.",
)


def aims(found: dict[str, Any]) -> list[Aim]:
    served, first = found["served"], found["served"]["first_video"]
    again = served["repeated_video"]["first_text"]["median"]
    eight, sixteen = found["frames"]["8"], found["frames"]["16"]
    return [
        Aim("first text, new video / repeated", first["first_text"]["median"] / again, 50.0, True),
        Aim("encoder, picture / video of 8 frames", eight["picture"]["median"] / eight["video"]["median"], 1 / 5),
        Aim("encoder, picture / video of 16 frames", sixteen["picture"]["median"] / sixteen["video"]["median"], 1 / 9),
        Aim("wave of 8, last / first", found["wave"]["last_to_first"], 2.0),
    ]


def tables(found: dict[str, Any]) -> list[Table]:
    rows = [
        [kind.replace("_", " "), values["first_text"]["median"], values["encoder"]["median"]]
        for kind, values in found["served"].items()
    ]
    ended = found["wave"]["seconds"]
    alone = [
        [f"{frames} frames", values["picture"]["median"], values["video"]["median"]]
        for frames, values in found["frames"].items()
    ]
    return [
        Table("One caller, seconds (median)", ["question", "first text", "encoder"], rows),
        Table("Encoder alone, seconds (median)", ["of", "a picture", "a video"], alone),
        Table("Eight new videos at once, seconds", ["first ended", "last ended"], [[min(ended), max(ended)]]),
    ]


def measure_bundle(bundle: Path, rounds: int) -> dict[str, Any]:
    clip = CLIP.read_bytes()
    found: dict[str, Any] = {
        "frames": {str(frames): measure.picture_and_video(bundle, frames, rounds) for frames in (8, 16)}
    }
    with serving(bundle) as served:
        measure.first_and_repeated(served.address, clip, 1)  # warm
        found["served"] = measure.first_and_repeated(served.address, clip, rounds)
        found["wave"] = measure.wave(served.address, clip)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="keep the checkpoint and its bundle here, and use what is there")
    asked = parser.parse_args()
    layers = FAST_LAYERS if asked.fast else None
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(asked.folder or Path(folder), layers)
        found = measure_bundle(bundle, 1 if asked.fast else 2)
    title = "A tower of a published size"
    record("encoder", title, tables(found), aims(found), NOTES, found, asked.fast, asked.out)


if __name__ == "__main__":
    main()
