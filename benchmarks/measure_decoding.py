"""Measures the language model on a CPU: batched decoding, repeated questions, prefill during decoding, Mixtral's experts.

Weights are random, except those of tiny-shapes; no tower is needed. Results are checked for equality before anything is timed.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from videollama_benchmarks.decoding.batches import BATCHES, POSITIONS, check_batches, decode_rates, experts, kept_prompt
from videollama_benchmarks.decoding.models import SHAPES, random_bundle, shapes_bundle, with_language
from videollama_benchmarks.decoding.questions import prefill_during_decoding, repeated
from videollama_benchmarks.recording import Aim, Table, arguments, record
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.prefixes import PREFIX_VARIABLE
from videollama_core.generation.runner import Runner
from videollama_core.generation.torch_runner import TorchRunner
from videollama_core.model.decoder import Decoder

WANTED = 4.0  # minimum speed-up with eight requests
NOTES = (
    f"Random weights in the named shapes, and tiny-shapes; {POSITIONS} positions, which is a video and a question. The scheduler "
    "and the runners work as in the stage, in one process, without a server.",
    "Checked before timing: the logits of eight requests in one step equal those of each alone (largest difference below 1e-3), and "
    "answers with cached prefixes have the same ids as answers without.",
)


def main() -> None:
    options = arguments(__doc__).parse_args()
    steps, runs = (4, 1) if options.fast else (12, 5)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    os.environ[PREFIX_VARIABLE] = str(2**30)
    decoding: list[list[str | float | None]] = []
    questions: list[list[str | float | None]] = []
    sharing: list[list[str | float | None]] = []
    moe: list[list[str | float | None]] = []
    aims: list[Aim] = []
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {"tiny-shapes": shapes_bundle(Path(folder, "shapes"))}
        for name, change in SHAPES.items():
            config = with_language(bundles["tiny-shapes"][0].config, change)
            bundles[name] = random_bundle(config, Path(folder, name.split(",")[0]))
        for name, (bundle, weights) in bundles.items():
            decoder = Decoder(bundle.config.language).eval()
            decoder.load_state_dict(weights)
            positions = bundle.max_seq_len
            runners: dict[str, Runner] = {"onnx": OnnxRunner(bundle, 8, positions)}
            if name == "tiny-shapes":
                runners["torch"] = TorchRunner(decoder, 8, positions)
            for engine, runner in runners.items():
                kept = kept_prompt(runner)
                difference = check_batches(runner, kept)
                rates = decode_rates(runner, kept, steps, runs)
                times = [rates[batch]["median"] / rates[1]["median"] for batch in BATCHES[1:]]
                decoding.append([name, engine, rates[1]["median"], *times, difference])
                samples[f"decode {name} {engine}"] = rates
                if engine == "onnx":
                    aims.append(Aim(f"{name}: tokens/s, 8 requests / 1", times[-1], WANTED, at_least=True))
                for slot in range(8):
                    runner.free(slot)
                if bundle.config.language.experts:
                    continue
                seconds = samples[f"repeated {name} {engine}"] = repeated(runner, max(1, runs // 2))
                medians = {kind: value["median"] for kind, value in seconds.items()}
                questions.append(
                    [
                        name,
                        engine,
                        medians["first"] / medians["text"],
                        medians["second"] / medians["text"],
                        medians["first"] / medians["second"],
                        medians["eight without"] / medians["one"],
                        medians["eight"] / medians["one"],
                    ]
                )
                both = samples[f"beside {name} {engine}"] = prefill_during_decoding(runner, max(1, runs // 2))
                gaps, prefill = both["gaps"], both["prefill"]
                alone = gaps["alone"]["median"]
                sharing.append(
                    [
                        name,
                        engine,
                        gaps["beside"]["median"] / alone,
                        gaps["longest"]["median"] / alone,
                        prefill["alone"]["median"] / alone,
                        prefill["beside"]["median"] / prefill["alone"]["median"],
                    ]
                )
        bundle, weights = bundles["Mixtral, 8 experts"]
        for name, values in experts(bundle.config, weights, 4 * runs).items():
            moe.append([name, statistics.median(values["all"]) / statistics.median(values["chosen"])])
    record(
        "decoding",
        "The language model on a CPU",
        [
            Table(
                "Decoding at 900 positions: tokens/s of one request, and the speed-up with 2, 4 and 8 requests in one step",
                ["model", "engine", "1", "2", "4", "8", "difference of logits"],
                decoding,
            ),
            Table(
                "Time until the first token, relative to a text of 20 tokens; and time until eight second questions are answered "
                "with 32 tokens each, relative to one question",
                [
                    "model",
                    "engine",
                    "first",
                    "second",
                    "first / second",
                    "eight, no cached prefix",
                    "eight, cached prefix",
                ],
                questions,
            ),
            Table(
                "Prefill of 900 positions during the decoding of another request, in decoding steps of that request alone "
                "(medians)",
                [
                    "model",
                    "engine",
                    "a step during prefill",
                    "the longest step",
                    "prefill alone",
                    "prefill: during decoding / alone",
                ],
                sharing,
            ),
            Table(
                "Mixtral, one layer in PyTorch: time of all experts relative to the selected ones (2 of 8)",
                ["positions", "times"],
                moe,
            ),
        ],
        aims,
        NOTES,
        samples,
        options.fast,
        options.out,
    )


if __name__ == "__main__":
    main()
