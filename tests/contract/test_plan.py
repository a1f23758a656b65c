"""`vl2 plan`: weights as published, only what a conversion accepts, and the table of docs/gpu.md."""

import json
from pathlib import Path

import pytest

from conftest import ROOT
from videollama_converters.gpus import GPUS
from videollama_converters.plan import LEAST_REQUESTS, as_table, count_parameters, make_plan
from videollama_core.checkpoint.read_config import published_config
from videollama_core.checkpoint.variants import VARIANTS

FACTS = json.loads((Path(__file__).parent / "facts_tensorrt_llm.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "language", "encoders"),
    [
        # Published totals; the encoders without the unused last layer, norm and pooling head.
        ("VideoLLaMA2-7B", 7_241_732_096, 489_188_608),
        ("VideoLLaMA2-8x7B", 46_702_792_704, 489_188_608),
        ("VideoLLaMA2-72B", 72_706_203_648, 1_934_678_272),
        ("VideoLLaMA2.1-7B-16F", 7_615_616_512, 376_889_248),
    ],
)
def test_weights_are_counted_as_published(name, language, encoders):
    total, layers, rest = count_parameters(name)
    assert layers + rest == language
    tower = total - encoders
    assert 0.93 <= tower / (303_507_456 if "2.1" not in name else 412_987_248) <= 1.0


def test_audio_parameters_are_counted_as_published():
    """BEATs without its classifier, with one table of positions and a merged convolution; plus the projector."""
    extra = count_parameters("VideoLLaMA2.1-7B-AV")[0] - count_parameters("VideoLLaMA2.1-7B-16F")[0]
    classifier, lengths = 527 * 768 + 527, 128
    assert extra == 90_717_055 + 15_604_736 - classifier - lengths


def test_the_plan_names_every_checkpoint_and_gpu():
    rows = make_plan()
    assert {(row.checkpoint, row.gpu) for row in rows} == {(name, gpu) for name in VARIANTS for gpu in GPUS}
    for row in rows:
        assert row.gpus in (1, 2, 4, 8) and row.requests >= LEAST_REQUESTS
        if "fp8" in (row.weights, row.cache):
            assert GPUS[row.gpu].capability >= 8.9
        assert row.weights in ("float16", *FACTS["matrix"][published_config(row.checkpoint).language.family])
    known = {(row.checkpoint, row.gpu, row.weights, row.cache): row for row in rows}
    half = ("float16", "float16")
    assert known["VideoLLaMA2-72B", "H100", *half].gpus == 4 and known["VideoLLaMA2-8x7B", "H100", *half].gpus == 2
    assert known["VideoLLaMA2-7B", "L40S", *half].gpus == 1
    # fp8 weights alone leave the cache as it was
    alone, both = (known["VideoLLaMA2-7B", "H100", "fp8", cache].kv_tokens for cache in ("float16", "fp8"))
    assert both == pytest.approx(2 * alone, abs=2)


def test_the_plan_counts_the_prompt_tables():
    row = next(row for row in make_plan() if (row.checkpoint, row.gpu) == ("VideoLLaMA2-7B", "H100"))
    assert row.table_gigabytes == 1.5  # 64 requests of 2,873 rows of 4,096 float16 numbers
    encoders, layers, rest = count_parameters("VideoLLaMA2-7B")
    held = 0.9 * 80e9 - 6e9 - 2 * (encoders + layers + rest) - 64 * 2873 * 4096 * 2
    assert row.kv_tokens == int(held / (2 * 2 * 32 * 8 * 128))


def test_the_documented_plan_is_current():
    table = as_table(make_plan())
    assert table in (ROOT / "docs/gpu.md").read_text("utf-8"), table
