"""Measures batched decoding steps, and the experts of one layer."""

import time
from typing import Any

import numpy as np
import torch

from videollama_benchmarks.recording import in_turn, spread
from videollama_core.generation.runner import Runner
from videollama_core.model.decoder import Decoder

POSITIONS = 900  # a video and a question
BATCHES = (1, 2, 4, 8)


def kept_prompt(runner: Runner) -> Any:
    """The state that a prompt leaves in a slot, with which any number of slots can be filled."""
    for slot in range(runner.num_slots):
        runner.free(slot)
    ids = np.random.default_rng(0).integers(0, runner.vocab_size, POSITIONS)
    runner.prefill(0, ids, None, np.ones(POSITIONS, bool))
    return runner.keep(0)


def fill_slots(runner: Runner, kept: Any, count: int) -> None:
    """Put the prompt into the first `count` slots, and empty the others."""
    for slot in range(runner.num_slots):
        runner.free(slot)
    for slot in range(count):
        runner.begin(slot, kept, POSITIONS)


def check_batches(runner: Runner, kept: Any, most: float = 1e-3) -> float:
    """The largest difference between the logits of eight requests in one step and of each alone. Raises: AssertionError from `most` on."""
    tokens = [11 + number for number in range(8)]
    fill_slots(runner, kept, 8)
    together = runner.decode(list(range(8)), tokens)
    batched = [together[row].copy() for row in range(8)]
    fill_slots(runner, kept, 8)
    alone = [runner.decode([slot], [token])[0].copy() for slot, token in enumerate(tokens)]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(batched, alone, strict=True))
    assert difference < most, (difference, most)
    return difference


def decode_rates(runner: Runner, kept: Any, steps: int, runs: int) -> dict[int, dict[str, float]]:
    """Batch size -> tokens per second."""
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(runs):
        for batch in BATCHES:
            fill = [*range(batch)]
            fill_slots(runner, kept, batch)
            runner.decode(fill, [7] * batch)
            began = time.perf_counter()
            for _ in range(steps):
                runner.decode(fill, [7] * batch)
            rates[batch].append(batch * steps / (time.perf_counter() - began))
    return {batch: spread(values) for batch, values in rates.items()}


def experts(config: Any, weights: dict[str, torch.Tensor], runs: int) -> dict[str, dict[str, list[float]]]:
    """Time one layer's experts in PyTorch: only the selected ones, and all of them with weight 0 for the others."""
    decoder = Decoder(config.language).eval()
    decoder.load_state_dict(weights)
    moe: Any = decoder.model.layers[0].block_sparse_moe  # type: ignore[union-attr]
    times = {}
    for name, shape in (("one position", (1, 1)), ("eight requests", (8, 1)), ("a chunk of 512", (1, 512))):
        x = torch.randn(*shape, config.language.width)
        with torch.inference_mode():
            assert torch.allclose(moe(x), moe.dense(x), atol=1e-4)
            taken = in_turn({"chosen": lambda x=x: moe(x), "all": lambda x=x: moe.dense(x)}, runs)  # type: ignore[misc]
        times[name] = {kind: values["wall"] for kind, values in taken.items()}
    return times
