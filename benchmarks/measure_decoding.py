"""Measures the language model on a CPU: batched decoding, repeated questions, prefill during decoding, Mixtral's experts.

Weights are random, except those of tiny-shapes; no tower is needed. Results are checked for equality before anything is timed.
"""

import os
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from videollama_benchmarks.decoding.batches import BATCHES, POSITIONS, check_batches, decode_rates, experts, kept_prompt
from videollama_benchmarks.decoding.models import all_bundles
from videollama_benchmarks.decoding.questions import prefill_during_decoding, repeated
from videollama_benchmarks.recording import Aim, Table, arguments, record
from videollama_core.engines.bundle import Bundle
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.prefixes import PREFIX_VARIABLE
from videollama_core.generation.runner import Runner
from videollama_core.generation.torch_runner import TorchRunner
from videollama_core.model.config import ModelConfig
from videollama_core.model.decoder import Decoder

SLOTS = 8
WANTED = 4.0  # minimum speed-up with eight requests
NOTES = (
    f"Random weights in the named shapes, and tiny-shapes; {POSITIONS} positions, which is a video and a question. The scheduler "
    "and the runners work as in the stage, in one process, without a server.",
    "Checked before timing: the logits of eight requests in one step equal those of each alone (largest difference below 1e-3), and "
    "answers with cached prefixes have the same ids as answers without.",
)

Row = list[str | float | None]  # of a table


@dataclass
class Measured:
    """The rows of each table, the aims and the samples, in the order in which they are measured."""

    decoding: list[Row] = field(default_factory=list)
    questions: list[Row] = field(default_factory=list)
    sharing: list[Row] = field(default_factory=list)
    experts: list[Row] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def measure_batches(self, name: str, engine: str, runner: Runner, steps: int, runs: int) -> None:
        """Decode batches of several sizes, and leave every slot free."""
        kept = kept_prompt(runner)
        difference = check_batches(runner, kept)
        rates = decode_rates(runner, kept, steps, runs)
        times = [rates[batch]["median"] / rates[1]["median"] for batch in BATCHES[1:]]
        self.decoding.append([name, engine, rates[1]["median"], *times, difference])
        self.samples[f"decode {name} {engine}"] = rates
        if engine == "onnx":
            self.aims.append(Aim(f"{name}: tokens/s, 8 requests / 1", times[-1], WANTED, at_least=True))
        for slot in range(SLOTS):
            runner.free(slot)

    def measure_questions(self, name: str, engine: str, runner: Runner, runs: int) -> None:
        """Answer first, repeated and concurrent questions."""
        seconds = self.samples[f"repeated {name} {engine}"] = repeated(runner, runs)
        medians = {kind: value["median"] for kind, value in seconds.items()}
        self.questions.append(
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

    def measure_sharing(self, name: str, engine: str, runner: Runner, runs: int) -> None:
        """Prefill one request while another decodes."""
        both = self.samples[f"beside {name} {engine}"] = prefill_during_decoding(runner, runs)
        gaps, prefill = both["gaps"], both["prefill"]
        alone = gaps["alone"]["median"]
        self.sharing.append(
            [
                name,
                engine,
                gaps["beside"]["median"] / alone,
                gaps["longest"]["median"] / alone,
                prefill["alone"]["median"] / alone,
                prefill["beside"]["median"] / prefill["alone"]["median"],
            ]
        )

    def measure_experts(self, config: ModelConfig, weights: dict[str, torch.Tensor], runs: int) -> None:
        """Compute one layer with all experts, and with those that are chosen."""
        for name, values in experts(config, weights, runs).items():
            self.experts.append([name, statistics.median(values["all"]) / statistics.median(values["chosen"])])


def runners_of(name: str, bundle: Bundle, weights: dict[str, torch.Tensor]) -> dict[str, Runner]:
    """What runs a decoder, by engine; PyTorch only tiny-shapes."""
    runners: dict[str, Runner] = {"onnx": OnnxRunner(bundle, SLOTS, bundle.max_seq_len)}
    if name == "tiny-shapes":
        decoder = Decoder(bundle.config.language).eval()
        decoder.load_state_dict(weights)
        runners["torch"] = TorchRunner(decoder, SLOTS, bundle.max_seq_len)
    return runners


def tables_of(measured: Measured) -> list[Table]:
    return [
        Table(
            "Decoding at 900 positions: tokens/s of one request, and the speed-up with 2, 4 and 8 requests in one step",
            ["model", "engine", "1", "2", "4", "8", "difference of logits"],
            measured.decoding,
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
            measured.questions,
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
            measured.sharing,
        ),
        Table(
            "Mixtral, one layer in PyTorch: time of all experts relative to the selected ones (2 of 8)",
            ["positions", "times"],
            measured.experts,
        ),
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    steps, runs = (4, 1) if options.fast else (12, 5)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    os.environ[PREFIX_VARIABLE] = str(2**30)
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        bundles = all_bundles(Path(folder))
        for name, (bundle, weights) in bundles.items():
            for engine, runner in runners_of(name, bundle, weights).items():
                measured.measure_batches(name, engine, runner, steps, runs)
                if not bundle.config.language.experts:
                    measured.measure_questions(name, engine, runner, max(1, runs // 2))
                    measured.measure_sharing(name, engine, runner, max(1, runs // 2))
        bundle, weights = bundles["Mixtral, 8 experts"]
        measured.measure_experts(bundle.config, weights, 4 * runs)
    tables, aims = tables_of(measured), measured.aims
    record("decoding", "The language model on a CPU", tables, aims, NOTES, measured.samples, options.fast, options.out)


if __name__ == "__main__":
    main()
