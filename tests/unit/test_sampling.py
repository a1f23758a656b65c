"""The next token: the reference's probabilities, seeds, and options out of range."""

import math

import numpy as np
import pytest

from conftest import VARIANTS, cases
from videollama_core.protocol.contract import MAX_NEW_TOKENS
from videollama_core.protocol.errors import BadSampling
from videollama_core.protocol.messages import GenerationDefaults, SamplingOptions
from videollama_core.sampling import Sampler, penalise, probabilities

DEFAULTS = GenerationDefaults(end_ids=(2,), top_k=50, repetition_penalty=1.0)
RECORDED = [case for variant in VARIANTS for case in cases(variant) if "sampling" in case.facts]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.variant)
def test_probabilities_of_the_first_token_equal_the_reference(case):
    for entry in case.facts["sampling"]:
        options = SamplingOptions(temperature=entry["temperature"], top_k=entry["top_k"], top_p=entry["top_p"])
        chances = probabilities(case.tensor("prefill_logits"), DEFAULTS.resolve(options))
        order = np.argsort(-chances, kind="stable")[: int((chances > 0).sum())]
        assert order.tolist() == [token for token, _ in entry["first_step"]]
        # Logits are stored as float32, chances rounded to six digits.
        assert np.allclose(chances[order], [chance for _, chance in entry["first_step"]], rtol=1e-4, atol=1e-6)


def test_greedy_is_the_default_and_takes_the_best():
    assert DEFAULTS.resolve(SamplingOptions()).greedy
    assert Sampler(DEFAULTS.resolve(SamplingOptions())).choose(np.array([1.0, 3.0, 2.0], np.float32)) == 1


def test_the_penalty_defaults_to_the_checkpoints_and_covers_only_generated_tokens():
    defaults = GenerationDefaults(end_ids=(2,), repetition_penalty=1.05)
    assert defaults.resolve(SamplingOptions()).repetition_penalty == 1.05
    assert defaults.resolve(SamplingOptions(repetition_penalty=1.0)).repetition_penalty == 1.0
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    assert penalise(logits, [0, 1, 0], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert penalise(logits, [], 2.0).tolist() == logits.tolist()
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_same_seed_same_tokens_other_seed_other_tokens():
    logits = np.zeros((50, 100), np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(DEFAULTS.resolve(SamplingOptions(temperature=1.0, seed=seed, top_k=0, top_p=1.0)))
        return [sampler.choose(row) for row in logits]

    assert draw(7) == draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_sampling_follows_the_probabilities():
    sampler = Sampler(DEFAULTS.resolve(SamplingOptions(temperature=1.0, seed=0, top_k=0, top_p=1.0)))
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    share = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=3) / 4000
    assert np.allclose(share, [0.7, 0.2, 0.1], atol=0.03)  # four standard deviations


@pytest.mark.parametrize("top_p", [1e-9, 0.3])
def test_the_best_token_always_stays(top_p):
    chances = probabilities(
        np.array([5.0, 1.0, 0.0], np.float32), DEFAULTS.resolve(SamplingOptions(temperature=1.0, top_p=top_p))
    )
    assert chances.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": MAX_NEW_TOKENS + 1},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"vcd_alpha": -1.0},
        {"vcd_beta": 1.5, "vcd_alpha": 1.0},
        {"vcd_noise_step": 1000, "vcd_alpha": 1.0},
        {"vcd_noise_step": 500},
        {"stop": ("",)},
        {"stop": "a string alone"},
        {"stop": tuple("abcdefghijklmnopq")},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options):
    with pytest.raises(BadSampling, match=next(iter(options))):
        SamplingOptions(**options)
