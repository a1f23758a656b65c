"""Measures a tower of a published size with a small decoder: first and repeated questions, images and videos, eight at once."""

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
    f"The demo's checkpoint with the tower of {PUBLISHED} (CLIP-L/336), float32 on ONNX Runtime; tower and connector have random "
    f"weights, and with --fast the tower has {FAST_LAYERS} layers. The decoder is the demo's. Every answer of the wave is checked to "
    "equal that of a question sent alone.",
)


def aims(results: dict[str, Any]) -> list[Aim]:
    served, first = results["served"], results["served"]["first_video"]
    again = served["repeated_video"]["first_text"]["median"]
    eight, sixteen = results["frames"]["8"], results["frames"]["16"]
    return [
        Aim("first text, new / repeated video", first["first_text"]["median"] / again, 50.0, True),
        Aim("encoder, image / video of 8 frames", eight["picture"]["median"] / eight["video"]["median"], 1 / 5),
        Aim("encoder, image / video of 16 frames", sixteen["picture"]["median"] / sixteen["video"]["median"], 1 / 9),
        Aim("wave of 8, last / first", results["wave"]["last_to_first"], 2.0),
    ]


def tables(results: dict[str, Any]) -> list[Table]:
    rows = [
        [
            kind.replace("_", " ").replace("picture", "image"),
            values["first_text"]["median"],
            values["encoder"]["median"],
        ]
        for kind, values in results["served"].items()
    ]
    ended = results["wave"]["seconds"]
    alone = [
        [f"{frames} frames", values["picture"]["median"], values["video"]["median"]]
        for frames, values in results["frames"].items()
    ]
    return [
        Table("One caller, seconds (median)", ["question", "first text", "encoder"], rows),
        Table("Encoder alone, seconds (median)", ["frames", "an image", "a video"], alone),
        Table("Eight new videos at once, seconds", ["first ended", "last ended"], [[min(ended), max(ended)]]),
    ]


def measure_bundle(bundle: Path, rounds: int) -> dict[str, Any]:
    clip = CLIP.read_bytes()
    results: dict[str, Any] = {
        "frames": {str(frames): measure.picture_and_video(bundle, frames, rounds) for frames in (8, 16)}
    }
    with serving(bundle) as served:
        measure.first_and_repeated(served.address, clip, 1)  # warm-up
        results["served"] = measure.first_and_repeated(served.address, clip, rounds)
        results["wave"] = measure.wave(served.address, clip)
    return results


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--folder", type=Path, help="Keep the checkpoint and its bundle in this folder, and reuse them."
    )
    options = parser.parse_args()
    layers = FAST_LAYERS if options.fast else None
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(options.folder or Path(folder), layers)
        results = measure_bundle(bundle, 1 if options.fast else 2)
    title = "A tower of a published size"
    record("encoder", title, tables(results), aims(results), NOTES, results, options.fast, options.out)


if __name__ == "__main__":
    main()
