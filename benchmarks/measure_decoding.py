"""The language model on a CPU: decoding in batches, a repeated question, prompts beside answers, Mixtral's experts.

Weights are random but those of tiny-shapes; a tower is not needed. Equal results are checked before anything is timed.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from videollama_benchmarks.decoding.batches import BATCHES, POSITIONS, check_batches, decode_rates, experts, kept_prompt
from videollama_benchmarks.decoding.models import SHAPES, random_bundle, shapes_bundle, with_language
from videollama_benchmarks.decoding.questions import beside, repeated
from videollama_benchmarks.recording import Aim, Table, arguments, record
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.prefixes import PREFIX_VARIABLE
from videollama_core.generation.runner import Runner
from videollama_core.generation.torch_runner import TorchRunner
from videollama_core.model.decoder import Decoder

WANTED = 4.0  # times the tokens of one request, for eight
NOTES = (
    f"Random weights in the shapes named, and tiny-shapes; {POSITIONS} positions, which is a video and a question. The parts "
    "are the scheduler and the runners as the stage runs them, in one process, without a server.",
    "Before timing: the scores of eight requests in one step equal those of each alone (largest difference below 1e-3), and "
    "answers with kept prompts have the ids of answers without.",
)


def main() -> None:
    asked = arguments(__doc__).parse_args()
    steps, runs = (4, 1) if asked.fast else (12, 5)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    os.environ[PREFIX_VARIABLE] = str(2**30)
    decoding: list[list[str | float | None]] = []
    questions: list[list[str | float | None]] = []
    sharing: list[list[str | float | None]] = []
    moe: list[list[str | float | None]] = []
    aims: list[Aim] = []
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {"tiny-shapes": shapes_bundle(Path(folder, "shapes"))}
        for name, change in SHAPES.items():
            config = with_language(made["tiny-shapes"][0].config, change)
            made[name] = random_bundle(config, Path(folder, name.split(",")[0]))
        for name, (bundle, weights) in made.items():
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
                    aims.append(Aim(f"{name}: tokens/s of 8 over 1", times[-1], WANTED, at_least=True))
                for slot in range(8):
                    runner.free(slot)
                if bundle.config.language.experts:
                    continue
                took = samples[f"repeated {name} {engine}"] = repeated(runner, max(1, runs // 2))
                middle = {kind: value["median"] for kind, value in took.items()}
                questions.append(
                    [
                        name,
                        engine,
                        middle["first"] / middle["text"],
                        middle["second"] / middle["text"],
                        middle["first"] / middle["second"],
                        middle["eight without"] / middle["one"],
                        middle["eight"] / middle["one"],
                    ]
                )
                both = samples[f"beside {name} {engine}"] = beside(runner, max(1, runs // 2))
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
        bundle, weights = made["Mixtral, 8 experts"]
        for name, values in experts(bundle.config, weights, 4 * runs).items():
            moe.append([name, statistics.median(values["all"]) / statistics.median(values["chosen"])])
    record(
        "decoding",
        "The language model on a CPU",
        [
            Table(
                "Decoding at 900 positions: tokens/s of one request, and how many times as many of 2, 4 and 8 in one step",
                ["model", "engine", "1", "2", "4", "8", "difference of scores"],
                decoding,
            ),
            Table(
                "Time until the first token, over that of a text of 20 tokens; and until eight second questions have "
                "32 tokens each, over that of one",
                ["model", "engine", "first", "second", "first over second", "eight, nothing kept", "eight, kept"],
                questions,
            ),
            Table(
                "A prompt of 900 positions beside an answer, in steps of the answer alone (medians)",
                ["model", "engine", "a step beside", "the longest", "the prompt alone", "prompt: beside over alone"],
                sharing,
            ),
            Table("Mixtral, one layer in PyTorch: all experts over those chosen (2 of 8)", ["positions", "times"], moe),
        ],
        aims,
        NOTES,
        samples,
        asked.fast,
        asked.out,
    )


if __name__ == "__main__":
    main()
