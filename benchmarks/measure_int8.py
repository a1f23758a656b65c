"""Measures int8 weights of the language model on a CPU compared with float32: accuracy of tiny-shapes, speed and size.

Accuracy is measured on the held-out questions through a real server. The larger models have random weights.
"""

import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videollama_benchmarks.decoding.batches import POSITIONS, check_batches, fill_slots, kept_prompt
from videollama_benchmarks.decoding.models import all_bundles, in_int8
from videollama_benchmarks.overhead.served import DEMO, converted_demo, serving
from videollama_benchmarks.recording import TREE, Table, arguments, in_turn, record, spread
from videollama_benchmarks.sources import FrameOrder, service
from videollama_benchmarks.tasks.items import Item
from videollama_benchmarks.tasks.shapes import TASKS, load_shapes, read_shapes
from videollama_client import Client
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.specs import DECODER
from videollama_core.generation.onnx_runner import OnnxRunner

PLAIN, INT8 = "float32", "int8"
BATCHES = (1, 8)
NUM_FRAMES = 8  # of tiny-shapes
NOTES = (
    "`vl2 convert --quantize int8` compared with a conversion without it. Accuracy: the 480 questions of `benchmarks/shapes` through a "
    f"server, greedy decoding, eight concurrent requests. Speed: the decoder's runner in one process at {POSITIONS} positions, both "
    "variants in turn, on all cores; the `processor` columns are ratios of processor time, which other work on the machine affects less "
    "than wall time.",
    "Checked before timing: the logits of eight requests in one step equal those of each alone (largest difference below 1e-3; in int8 "
    "below the difference that rounding the weights makes).",
)


def answers(bundle: Path, items: list[Item]) -> dict[str, list[str]]:
    """Answers with the frames in order and shuffled; the model was never trained on shuffled frames."""
    by_order = {}
    with serving(bundle) as served, Client(served.address) as client, ThreadPoolExecutor(8) as pool:
        for order, frames in (("", None), (", frames shuffled", FrameOrder("shuffled", NUM_FRAMES))):
            ask = service(client, TASKS[0].max_new_tokens, 600.0, frames)
            by_order[order] = list(pool.map(lambda item, ask=ask: ask(item, item.questions[0]), items))  # type: ignore[misc]
    return by_order


def accuracy(items: list[Item], order: str, texts_by_name: dict[str, list[str]]) -> list[list[str | float | None]]:
    """One row for all questions, and one for each form."""
    right = {
        name: [bool(read_shapes(item, [answer]).right) for item, answer in zip(items, texts, strict=True)]
        for name, texts in texts_by_name.items()
    }
    same = [plain == int8 for plain, int8 in zip(texts_by_name[PLAIN], texts_by_name[INT8], strict=True)]
    rows: list[list[str | float | None]] = []
    for form in ("all", *sorted({item.groups["form"] for item in items})):
        chosen = [place for place, item in enumerate(items) if form in ("all", item.groups["form"])]
        shares = (100 * statistics.mean(values[place] for place in chosen) for values in (*right.values(), same))
        rows.append([form + order, len(chosen), *(f"{share:.1f} %" for share in shares)])
    return rows


def speed(bundles: dict[str, Bundle], steps: int, runs: int) -> dict[str, Any]:
    """Batch size, or "prompt" -> variant -> `wall` and `cpu` seconds of each run."""
    runners = {name: OnnxRunner(bundle, 8, bundle.max_seq_len) for name, bundle in bundles.items()}
    kept = {name: kept_prompt(runner) for name, runner in runners.items()}
    check_batches(runners[PLAIN], kept[PLAIN])
    # The last bit of a float may round a product's input to the next code; allow no more than what rounding the weights costs.
    check_batches(runners[INT8], kept[INT8], most=_rounding(runners, kept))

    def decode(name: str, batch: int) -> None:
        for _ in range(steps):
            runners[name].decode([*range(batch)], [7] * batch)

    def prompt(name: str) -> None:
        runners[name].free(0)
        ids = np.random.default_rng(0).integers(0, runners[name].vocab_size, POSITIONS)
        runners[name].prefill(0, ids, None, np.ones(POSITIONS, bool))

    times: dict[str, Any] = {}
    for batch in BATCHES:
        for name, runner in runners.items():
            fill_slots(runner, kept[name], batch)
            decode(name, batch)
        times[str(batch)] = in_turn({n: lambda n=n, b=batch: decode(n, b) for n in runners}, runs)  # type: ignore[misc]
    times["prompt"] = in_turn({n: lambda n=n: prompt(n) for n in runners}, runs)  # type: ignore[misc]
    return times


def _rounding(runners: dict[str, OnnxRunner], kept: dict[str, Any]) -> float:
    """The largest difference between the logits of the two variants after the same ids."""
    logits = []
    for name, runner in runners.items():
        fill_slots(runner, kept[name], 1)
        logits.append(runner.decode([0], [7])[0].copy())
    return float(np.abs(logits[0] - logits[1]).max())


def speed_row(name: str, times: dict[str, Any], steps: int) -> list[str | float | None]:
    """For each kind of `speed`: tokens per second in float32, and the speed-up of int8 in wall and processor time."""
    row: list[str | float | None] = [name]
    for kind, by_variant in times.items():
        count = POSITIONS if kind == "prompt" else int(kind) * steps
        wall = {variant: statistics.median(values["wall"]) for variant, values in by_variant.items()}
        cpu = {variant: statistics.median(values["cpu"]) for variant, values in by_variant.items()}
        row += [count / wall[PLAIN], wall[PLAIN] / wall[INT8], cpu[PLAIN] / cpu[INT8]]
    return row


def size_row(name: str, variants: dict[str, Bundle]) -> list[str | float | None]:
    """Megabytes of the decoder's graph and weights in both variants, and their ratio."""
    plain, int8 = (
        sum(path.stat().st_size for path in bundle.root.glob(f"onnx/{DECODER.name}.*")) / 1e6
        for bundle in variants.values()
    )
    return [name, plain, int8, int8 / plain]


def main() -> None:
    options = arguments(__doc__).parse_args()
    steps, runs = (4, 1) if options.fast else (12, 9)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    items = load_shapes(TREE / "benchmarks/shapes")[:: 20 if options.fast else 1]
    served = {
        PLAIN: converted_demo(),
        INT8: converted_demo("--quantize", INT8, out=DEMO.with_name(f"{DEMO.name}-{INT8}")),
    }
    texts = {name: answers(bundle, items) for name, bundle in served.items()}
    right = [row for order in texts[PLAIN] for row in accuracy(items, order, {n: of[order] for n, of in texts.items()})]
    rates: list[list[str | float | None]] = []
    sizes: list[list[str | float | None]] = []
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (bundle, weights)) in enumerate(all_bundles(Path(folder)).items()):
            both = {PLAIN: bundle, INT8: in_int8(bundle, weights, Path(folder, f"{number}-{INT8}"))}
            sizes.append(size_row(name, both))
            taken = speed(both, steps, runs)
            samples[name] = {kind: {n: spread(v["wall"]) for n, v in times.items()} for kind, times in taken.items()}
            rates.append(speed_row(name, taken, steps))
    columns = [
        column
        for of in ("1", "8", "prompt")
        for column in (f"{of}: float32 tokens/s", f"{of}: int8", f"{of}: processor")
    ]
    record(
        "int8",
        "Weights in int8 on a CPU",
        [
            Table(
                "Accuracy of tiny-shapes, and share of identical answers",
                ["questions", "number", PLAIN, INT8, "identical"],
                right,
            ),
            Table(
                "Tokens/s of one request, of eight in one step and of a prefill; speed-up of int8",
                ["model", *columns],
                rates,
            ),
            Table("Size of the decoder's graph and weights, MB", ["model", PLAIN, INT8, "int8 / float32"], sizes),
        ],
        (),
        NOTES,
        samples,
        options.fast,
        options.out,
    )


if __name__ == "__main__":
    main()
