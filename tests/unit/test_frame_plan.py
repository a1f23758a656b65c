"""The planned tokens equal those of the whole sequence, for every length and repetition, in both connectors."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from conftest import checkpoint
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.model.connector import Connector
from videollama_core.model.frame_plan import plan_encoding, plan_time_steps

CONFIGS = {name: read_model_config(checkpoint(name)) for name in ("mistral-clip-8f", "qwen2-siglip-16f")}


@pytest.mark.parametrize("variant", CONFIGS)
def test_planned_tokens_equal_the_whole_sequence(variant):
    config = CONFIGS[variant]
    torch.manual_seed(0)
    connector = Connector(config).eval()
    features = torch.randn(4, config.vision.tokens, config.vision.width)
    generator = random.Random(0)
    saved = 0
    with torch.inference_mode():
        for length in range(2, 19):
            for _ in range(3):
                ids = (
                    sorted(generator.choices(range(4), k=length))
                    if generator.random() < 0.5
                    else generator.choices(range(4), k=length)
                )
                whole = connector(features, torch.tensor(ids))
                frame_index, step_index = plan_time_steps(ids, config.connector_padding)
                planned = connector(features, torch.from_numpy(frame_index))[torch.from_numpy(step_index)]
                assert planned.shape == whole.shape, ids
                # The same sums in another batch: only the last bits may move.
                assert torch.allclose(planned, whole, atol=1e-5), ids
                saved += length - len(frame_index)
    assert saved > 0


def test_an_image_needs_three_steps_padded_and_one_unpadded():
    assert len(plan_time_steps([0] * 8, 1)[0]) == 4
    assert len(plan_time_steps([0] * 16, 0)[0]) == 2
    assert plan_time_steps([0] * 8, 1)[1].tolist() == [0, 1, 1, 1, 2]
    assert plan_time_steps([0] * 16, 0)[1].tolist() == [0] * 8


def test_frames_that_repeat_are_encoded_once():
    config = dataclasses.replace(CONFIGS["mistral-clip-8f"], num_frames=8)
    size = config.pixels.size
    pictures = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    plan = plan_encoding(pictures[[0, 0, 1, 0, 1, 1, 1, 1]], config)
    assert np.array_equal(plan.distinct, pictures)
    assert len(plan_encoding(pictures[:1], config).distinct) == 1
