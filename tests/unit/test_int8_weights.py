"""Int8 matrices: the rounding, which matrix products of a graph use it, and which engines offer it."""

import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

from conftest import checkpoint
from videollama_client.cli import main_group
from videollama_converters.engine_options import EngineOptions
from videollama_converters.export.graphs import trace_graph
from videollama_converters.export.int8_weights import BLOCK, ROUTER, quantize, store_in_int8
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_converters.tensorrt_llm.support import QUANTIZATIONS
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.specs import DECODER
from videollama_core.engines.table import LANGUAGE_ENGINES
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError


def unpacked(codes: torch.Tensor, scales: torch.Tensor, width: int) -> torch.Tensor:
    return ((codes.float() - 128) * scales[..., None]).flatten(1)[:, :width]


@pytest.mark.parametrize("width", [BLOCK, 3 * BLOCK, BLOCK + 7, 5])
def test_no_weight_moves_by_more_than_half_a_step(width):
    weight = torch.randn(9, width, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 9)[:, None]
    codes, scales = quantize(weight)
    assert codes.shape == (9, -(-width // BLOCK), BLOCK) and scales.shape == codes.shape[:2]
    assert codes.dtype == torch.uint8 and codes.min() >= 1
    step = scales.repeat_interleave(BLOCK, 1)[:, :width]
    assert ((unpacked(codes, scales, width) - weight).abs() <= 0.501 * step).all()


def test_zeros_and_bfloat16_are_preserved():
    codes, scales = quantize(torch.zeros(2, BLOCK))
    assert (codes == 128).all() and not scales.any()
    weight = torch.arange(-127, 128, dtype=torch.bfloat16)[None, : BLOCK - 1]
    assert torch.equal(unpacked(*quantize(weight), BLOCK - 1), weight.float())


@pytest.mark.parametrize("variant", ["mixtral-clip-8f", "qwen2-clip-8f"])
def test_every_matrix_but_the_routers_is_stored_in_int8(variant):
    parts = open_checkpoint(checkpoint(variant))
    sources, read = parts.language_sources(), []
    model = trace_graph(DECODER, parts.config)
    matrices = {
        n for n, v in model.graph.initializers.items() if n in sources and v.shape is not None and len(v.shape) == 2
    }
    routers = {name for name in matrices if name.endswith(ROUTER)}
    assert len(routers) == (parts.config.language.layers if parts.config.language.experts else 0)
    store_in_int8(model, sources, lambda: read.append(1))
    left = {
        n for n, v in model.graph.initializers.items() if n in sources and v.shape is not None and len(v.shape) == 2
    }
    assert left == routers
    products = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert len(products) == len(matrices - routers)
    assert not read  # a matrix is read when it is written
    stored = model.graph.initializers["lm_head.weight.codes"].const_value
    assert isinstance(stored, ir.LazyTensor) and stored.numpy().shape == stored.shape.numpy() and len(read) == 1


def test_the_table_names_the_quantizations_of_tensorrt_llm():
    assert LANGUAGE_ENGINES["tensorrt-llm"].quantizations == tuple(QUANTIZATIONS)
    assert [name for name, engine in LANGUAGE_ENGINES.items() if "int8" in engine.quantizations] == ["onnx"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"engine": "torch", "dtype": "bfloat16", "quantization": "int8"},
            "on torch does not support --quantize int8: use no --quantize",
        ),
        ({"llm_engine": "vllm", "quantization": "int8"}, "on vllm does not support --quantize int8"),
        ({"quantization": "int3"}, "on onnx does not support --quantize int3: use one of int8"),
        (
            {"recipe": Recipe(quantization="fp8", calibration="texts")},
            "on onnx does not support --quantize fp8: use one of int8",
        ),
        (
            {"engine": "tensorrt", "dtype": "float16", "recipe": Recipe(quantization="int8")},
            "on tensorrt-llm does not support --quantize int8: use one of fp8, int4_awq, int8_sq",
        ),
        ({"quantization": "int8", "recipe": Recipe(calibration="texts")}, "leave out --calibration"),
        (
            {"engine": "torch", "dtype": "bfloat16", "recipe": Recipe(kv_dtype="fp8")},
            "--kv-dtype is an option of TensorRT-LLM, but torch runs the language model here",
        ),
        ({"recipe": Recipe(tp=2)}, "--tp is an option of TensorRT-LLM, but onnx runs"),
        ({"recipe": Recipe(calibration="texts")}, "--calibration is an option of TensorRT-LLM"),
        (
            {"engine": "tensorrt-rtx", "dtype": "bfloat16", "recipe": Recipe(max_batch_size=8)},
            "--max-batch-size is an option of TensorRT-LLM",
        ),
        ({"engine": "tensorrt", "dtype": "bfloat16", "slots": 8}, "tensorrt-llm has no --slots: use --max-batch-size"),
    ],
)
def test_an_engine_refuses_quantization_it_does_not_support(options, reason):
    with pytest.raises(InvalidRequest, match=reason):
        EngineOptions(**options)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--engine", "torch", "--quantize", "int8"), "on torch does not support --quantize int8"),
        (("--engine", "torch", "--ep", "2"), "--ep is an option of TensorRT-LLM"),
        (
            ("--engine", "tensorrt", "--quantize", "int8", "--dry-run"),
            "on tensorrt-llm does not support --quantize int8",
        ),
        (("--quantize", "fp8"), "on onnx does not support --quantize fp8"),
        (("--quantize", "int8", "--llm-engine", "vllm"), "on vllm does not support --quantize int8"),
    ],
)
def test_the_command_refuses_before_it_reads_anything(words, reason, tmp_path):
    words = ["convert", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *words]
    result = CliRunner().invoke(main_group, words)
    told = result.output + str(result.exception if isinstance(result.exception, VideoLlamaError) else "")
    assert result.exit_code and reason in told and not (tmp_path / "out").exists()
