"""Every combination of weights and cache for every family: refused, or a server that starts by the rules of the release's own builder."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from conftest import ROOT, checkpoint
from videollama_converters.cli import convert
from videollama_converters.dry_run import describe
from videollama_converters.engine_options import EngineOptions
from videollama_converters.gpus import GPUS
from videollama_converters.tensorrt_llm.config import render_config
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_converters.tensorrt_llm.support import FAMILIES, KV_DTYPES, QUANTIZATIONS, as_table, refusal
from videollama_core.checkpoint.read_config import published_config
from videollama_core.engines.table import ENCODER_ENGINES
from videollama_core.protocol.errors import InvalidRequest

FACTS = json.loads((Path(__file__).parent / "facts_tensorrt_llm.json").read_text("utf-8"))
CHECKPOINTS = {"mistral": "VideoLLaMA2-7B", "mixtral": "VideoLLaMA2-8x7B", "qwen2": "VideoLLaMA2.1-7B-AV"}
WEIGHTS = ("", *QUANTIZATIONS)


@pytest.fixture
def texts(tmp_path) -> str:
    (tmp_path / "train.jsonl").write_text('{"text": "What happens in this video?"}\n')
    return str(tmp_path)


def flags(words: list[str]) -> dict[str, str]:
    return {word: value for word, value in pairwise(words) if word.startswith("--")}


def built(quantization: str, kv_dtype: str, words: list[str]) -> dict[str, bool]:
    """The plugins that the builder chooses for these flags, following its source."""
    rules, asked = FACTS["builder"], flags(words)
    algo = rules["quant_algo"][quantization]
    off = rules["paged_context_fmha_off"]
    paged = asked["--use_paged_context_fmha"] == "enable" and kv_dtype not in off["cache"]
    paged = paged and (kv_dtype not in off["cache_without_algo"] or algo in off["cache_without_algo"][kv_dtype])
    needs = rules["fp8_context_fmha_needs"]
    return {"paged": paged, "fp8": algo in needs["algo"] and kv_dtype == needs["cache"]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("quantization", WEIGHTS)
@pytest.mark.parametrize("dtype", ENCODER_ENGINES["tensorrt"].dtypes)
def test_a_combination_is_refused_or_starts(dtype, quantization, kv_dtype, family, texts):
    """An int8 cache, and an fp8 cache without fp8 weights, once printed commands for a server that did not start."""
    config = published_config(CHECKPOINTS[family])
    for gpu, card in GPUS.items():
        recipe = Recipe("float16", quantization, kv_dtype, gpu=gpu, calibration=texts if quantization else "")
        options = EngineOptions("tensorrt", dtype, recipe=recipe)
        has_kernels = card.capability >= max(KV_DTYPES[kv_dtype], QUANTIZATIONS.get(quantization, ("", 0.0))[1])
        if refusal(family, quantization, kv_dtype) or not has_kernels:
            for ask in (
                lambda options=options: options.check(config),
                lambda recipe=recipe: recipe.commands(config, Path("llm"), Path("out")),
                lambda recipe=recipe: render_config(recipe, config, "engine", "llm"),
            ):
                with pytest.raises(InvalidRequest):
                    ask()
            continue
        options.check(config)
        first, second = recipe.commands(config, Path("llm"), Path("out"))
        engine = built(quantization, kv_dtype, second)
        served = dict(
            re.findall(r'key: "(\w+)", value: \{ string_value: "(\w*)"', render_config(recipe, config, "e", "l"))
        )
        for feature in FACTS["builder"]["needs_paged_context_fmha"]:
            assert served[feature] == "true" and engine["paged"]
        assert flags(second)["--use_fp8_context_fmha"] == ("enable" if engine["fp8"] else "disable")
        assert not quantization or quantization in FACTS["matrix"][family]
        assert flags(first).get("--kv_cache_dtype", "auto") == kv_dtype


def test_only_what_the_release_cannot_do_is_refused():
    """The refusals are no broader than necessary."""
    for family in FAMILIES:
        for quantization in WEIGHTS:
            for kv_dtype in KV_DTYPES:
                known = not quantization or quantization in FACTS["matrix"][family]
                words = ["--use_paged_context_fmha", "enable"]
                starts = known and built(quantization, kv_dtype, words)["paged"]
                assert starts == (not refusal(family, quantization, kv_dtype)), (family, quantization, kv_dtype)


def test_the_documented_table_is_current():
    assert as_table() in (ROOT / "docs/gpu.md").read_text("utf-8"), as_table()


def test_a_dry_run_refuses_as_the_conversion_does(tmp_path, texts):
    def dry_run(variant: str, **options) -> str:
        recipe = Recipe("float16", **options)
        engine = EngineOptions("tensorrt", "bfloat16", recipe=recipe)
        return describe(checkpoint(variant), tmp_path / "out", None, None, engine)

    with pytest.raises(InvalidRequest, match="a cache of int8 for mistral: .*would not start"):
        dry_run("mistral-clip-8f", kv_dtype="int8")
    with pytest.raises(InvalidRequest, match="quantizes Mixtral only to fp8"):
        dry_run("mixtral-clip-8f", quantization="int8_sq", calibration=texts)
    assert f"--calib_dataset {texts}" in dry_run(
        "mistral-clip-8f", quantization="fp8", kv_dtype="fp8", calibration=texts
    )


@pytest.mark.parametrize(
    ("requests", "reason"),
    [(10**9, "at most 1024"), (1025, "at most 1024"), (1024, "48 GB of each GPU, and L40S has 48")],
)
def test_more_requests_than_a_server_starts_with_are_refused(requests, reason):
    config = published_config("VideoLLaMA2-72B")
    with pytest.raises(InvalidRequest, match=reason):
        Recipe(tp=8, gpu="L40S", max_batch_size=requests).check(config)


def test_no_positions_are_not_the_default():
    with pytest.raises(InvalidRequest, match="--max-seq-len is 0"):
        convert.main(
            [
                str(checkpoint("mistral-clip-8f")),
                "--out",
                "x",
                "--engine",
                "tensorrt",
                "--max-seq-len",
                "0",
                "--dry-run",
            ],
            standalone_mode=False,
        )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "FileNotFoundError"),
        ("", "has 0 lines"),
        ("no JSON\n", "cannot be read"),
        ('{"question": "what?"}\n', "KeyError"),
        ('["what?"]\n', "TypeError"),
        ('{"text": " "}\n', "not empty"),
    ],
)
def test_calibration_texts_are_read_before_the_work(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "train.jsonl").write_text(content)
    options = EngineOptions("tensorrt", "bfloat16", recipe=Recipe("float16", "fp8", calibration=str(tmp_path)))
    with pytest.raises(InvalidRequest, match=reason):
        options.check(published_config("VideoLLaMA2-7B"))


def test_a_path_that_quantize_takes_for_another_model_is_refused(texts):
    """quantize.py searches the whole path for "mpt", "vila" and others: a folder named attempt is read as an MPT model."""
    recipe, config = Recipe("float16", "fp8", calibration=texts), published_config("VideoLLaMA2-7B")
    with pytest.raises(InvalidRequest, match="attempt.*contains 'mpt'"):
        recipe.commands(config, Path("/data/attempt/llm"), Path("out"))
    Recipe("float16").commands(config, Path("/data/attempt/llm"), Path("out"))  # convert_checkpoint.py does not
