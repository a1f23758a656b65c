"""The files written for TensorRT-LLM 1.2.1 against the release's own facts (facts_tensorrt_llm.json names each source)."""

import json
import re
from pathlib import Path

import pytest

from conftest import ROOT
from videollama_converters.export.graph_specs import ENGINE_GRAPHS, profiles
from videollama_converters.tensorrt_llm.config import INPUTS, OUTPUTS, parameters, render_config
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.checkpoint.read_config import published_config
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.engines.specs import CONNECTOR, graphs_of
from videollama_core.media.video import MAX_FRAMES
from videollama_core.model.config import AUDIO_KINDS, media_token_count
from videollama_core.protocol import contract
from videollama_core.protocol.errors import InvalidRequest
from videollama_server.multi_gpu import with_ranks

FACTS = json.loads((Path(__file__).parent / "facts_tensorrt_llm.json").read_text("utf-8"))
CONFIG = FACTS["config"]
RECIPES = {
    "plain": ("VideoLLaMA2-7B", Recipe("float16")),
    "bfloat16, two GPUs": ("VideoLLaMA2.1-7B-16F", Recipe("bfloat16", tp=2)),
    "fp8": ("VideoLLaMA2-8x7B", Recipe("float16", "fp8", calibration="texts")),
    "fp8 with a cache of fp8": ("VideoLLaMA2.1-7B-AV", Recipe("float16", "fp8", "fp8", calibration="texts")),
    "experts shared by tensor": ("VideoLLaMA2-8x7B", Recipe("float16", tp=2)),
    "experts shared whole": ("VideoLLaMA2-8x7B", Recipe("float16", tp=2, ep=2)),
    "experts shared both ways": ("VideoLLaMA2-8x7B", Recipe("float16", tp=4, ep=2)),
    "layers shared": ("VideoLLaMA2-72B", Recipe("float16", tp=2, pp=2)),
    "int4": ("VideoLLaMA2-72B", Recipe("float16", "int4_awq", gpu="A100-80", calibration="texts")),
    "int8": ("VideoLLaMA2-7B-16F", Recipe("float16", "int8_sq", tp=2, gpu="A100-80", calibration="texts")),
}


def flags(words: list[str]) -> dict[str, str]:
    """--name value ..., and "" for a flag alone."""
    values = {}
    for place, word in enumerate(words):
        if word.startswith("--"):
            following = words[place + 1] if place + 1 < len(words) else "--"
            values[word] = "" if following.startswith("--") else following
    return values


@pytest.mark.parametrize("name", RECIPES)
def test_every_flag_and_value_exists_in_the_release(name):
    checkpoint, recipe = RECIPES[name]
    commands = recipe.commands(published_config(checkpoint), Path("llm"), Path("out"))
    assert len(commands) == 2
    for words in commands:
        tool = next(key for key in ("convert_checkpoint", "quantize", "trtllm-build") if key in " ".join(words[:2]))
        known, used = FACTS[tool], flags(words)
        assert set(used) <= set(known["flags"]), set(used) - set(known["flags"])
        for flag, allowed in known.get("values", {}).items():
            assert used.get(flag, allowed[0]) in allowed, flag


@pytest.mark.parametrize("name", RECIPES)
def test_the_engine_accepts_what_the_service_sends(name):
    checkpoint, recipe = RECIPES[name]
    config = published_config(checkpoint)
    used = flags(recipe.commands(config, Path("llm"), Path("out"))[1])
    known = FACTS["trtllm-build"]
    assert known["inflight_batching_needs"].items() <= used.items()
    for pair in known["excludes"]:
        assert not set(pair) <= set(used)
    assert int(used["--max_multimodal_len"]) % recipe.max_batch_size == 0
    assert int(used["--max_input_len"]) < int(used["--max_seq_len"]) == recipe.max_seq_len
    assert int(used["--workers"]) == recipe.world_size
    assert used["--gemm_plugin"] == ("disable" if recipe.quantization == "fp8" else recipe.dtype)


def test_experts_multiply_to_the_tensor_parallel_size():
    for name in ("experts shared by tensor", "experts shared whole", "experts shared both ways"):
        checkpoint, recipe = RECIPES[name]
        used = flags(recipe.commands(published_config(checkpoint), Path("llm"), Path("out"))[0])
        assert int(used["--moe_tp_size"]) * int(used["--moe_ep_size"]) == recipe.tp


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("max_seq_len", [4096, 8192])
def test_no_accepted_question_overflows_its_share_of_the_prompt_table(name, max_seq_len):
    """The executor throws outside every request, which ends all of them; the table was sized for num_frames alone."""
    config = published_config(name)
    if max_seq_len > config.language.max_positions:
        pytest.skip("the checkpoint has fewer positions")
    recipe = Recipe("float16", max_seq_len=max_seq_len)
    used = flags(recipe.commands(config, Path("llm"), Path("out"))[1])
    total, requests = (int(used[flag]) for flag in FACTS["builder"]["rows_of_a_request"])
    frames = range(config.num_frames, MAX_FRAMES + 1)
    accepted = [media_token_count(config.connector, count, config.vision.grid) for count in frames]
    accepted += [config.tokens_of(kind) for kind in contract.MEDIA_KINDS if config.audio or kind not in AUDIO_KINDS]
    assert max(rows for rows in accepted if rows < max_seq_len) <= total // requests
    assert recipe.table_bytes(config) == total * config.language.width * 2


def test_raw_frames_of_a_7b_fit():
    """2,873 rows for 32 frames, where the table had 845."""
    assert Recipe("float16").table_rows(published_config("VideoLLaMA2-7B")) == 2873


def test_experts_are_never_read_shard_by_shard():
    """With the unified converter switched off, the release refuses it: "MoE does not support sharded load"."""
    for name in ("VideoLLaMA2-7B", "VideoLLaMA2-8x7B", "VideoLLaMA2-72B"):
        words = Recipe("float16").commands(published_config(name), Path("llm"), Path("out"))[0]
        assert not set(FACTS["matrix"]["no_experts"]) & set(words)


def test_calibration_texts_are_the_users():
    """Without --calib_dataset, quantize.py downloads one."""
    for name, (checkpoint, recipe) in RECIPES.items():
        words = recipe.commands(published_config(checkpoint), Path("llm"), Path("out"))[0]
        assert flags(words).get("--calib_dataset", "") == ("texts" if recipe.quantization else ""), name


def test_mistral_and_mixtral_go_through_the_llama_script():
    for name, folder in (("VideoLLaMA2-7B", "llama"), ("VideoLLaMA2-8x7B", "llama"), ("VideoLLaMA2-72B", "qwen")):
        first = Recipe("float16").commands(published_config(name), Path("llm"), Path("out"))[0]
        assert first[1].endswith(f"models/core/{folder}/convert_checkpoint.py")


# --- config.pbtxt --------------------------------------------------------------------------------------------------------


def rendered(name: str = "plain") -> str:
    checkpoint, recipe = RECIPES[name]
    return render_config(recipe, published_config(checkpoint), "/bundle/engines/llm/engine", "/bundle/llm")


def tensors(text: str, part: str) -> dict[str, tuple[str, list[int], str]]:
    block = re.search(rf"^{part} \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    specs = {}
    for name, kind, dims, rest in re.findall(
        r'name: "(\w+)", data_type: TYPE_(\w+), dims: \[ ([-\d, ]+) \](.*) \},?$', block, re.MULTILINE
    ):
        specs[name] = (kind, [int(size) for size in dims.split(",")], rest)
    return specs


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_is_complete(name):
    text, (_, recipe) = rendered(name), RECIPES[name]
    assert "${" not in text
    assert f"max_batch_size: {recipe.max_batch_size}\n" in text and "decoupled: true" in text
    assert 'backend: "tensorrtllm"' in text and "KIND_CPU" in text
    inputs, outputs = tensors(text, "input"), tensors(text, "output")
    scalars = {tensor: kind for kind, names in CONFIG["scalar_inputs"].items() for tensor in names}
    assert set(inputs) == set(CONFIG["inputs"]) | set(scalars)
    for tensor, (kind, dims, rest) in inputs.items():
        if tensor in scalars:
            assert (kind, dims) == (scalars[tensor], [1]) and "reshape: { shape: [ ] }" in rest, tensor
        elif CONFIG["inputs"][tensor][0] == "engine":
            assert f"TYPE_{kind}" in CONFIG["prompt_embedding_table_types"] and dims == CONFIG["inputs"][tensor][1]
            assert kind == {"float16": "FP16", "bfloat16": "BF16"}[recipe.dtype]
        else:
            assert [kind, dims] == CONFIG["inputs"][tensor], tensor
        ragged = tensor not in scalars and tensor not in CONFIG["not_ragged"]
        assert ("allow_ragged_batch: true" in rest) == ragged, tensor
        assert ("reshape" in rest) == (tensor in scalars), tensor
        assert ("optional: true" in rest) == (tensor not in CONFIG["required"]), tensor
    assert {tensor: [kind, dims] for tensor, (kind, dims, _) in outputs.items()} == CONFIG["outputs"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_is_there_and_allowed(name):
    parameters = dict(
        re.findall(r'parameters \{ key: "(\w+)", value: \{ string_value: "([^"]*)" \} \}', rendered(name))
    )
    unknown = {
        key
        for key in set(parameters) - set(CONFIG["parameters"])
        if not key.startswith(tuple(CONFIG["parameter_prefixes"]))
    }
    assert not unknown and set(CONFIG["parameters"]) <= set(parameters)
    for key, allowed in CONFIG["values"].items():
        assert parameters[key] in allowed
    assert parameters["gpu_device_ids"].split(",") == [str(rank) for rank in range(RECIPES[name][1].world_size)]
    assert parameters["executor_worker_path"] == "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"


def test_kv_cache_reuse_requires_hashes():
    """Unset means on in the C++ backend; without hashes one video would be answered with another's cache."""
    recipe = RECIPES["plain"][1]
    assert parameters(recipe, "e", "t")["enable_kv_cache_reuse"] == "true"
    assert contract.PROMPT_EXTRA_IDS.name in {tensor.name for tensor in contract.PROMPT.outputs}
    assert contract.MEDIA_HASH.name in {tensor.name for tensor in contract.PERCEPTION.outputs}


def test_the_cpu_stage_implements_a_part_of_the_same_contract():
    theirs = {field.name: field for field in INPUTS}
    ours = {tensor.name for tensor in contract.OWN_SAMPLING}  # refused by the entry where TensorRT-LLM answers
    for tensor in contract.LANGUAGE_MODEL.inputs:
        if tensor.name in ours:
            continue
        field = theirs[tensor.name]
        if tensor.name != "prompt_embedding_table":  # in the engine's type there
            assert (field.dtype, field.dims) == (tensor.dtype, tensor.dims), tensor.name
    outputs = {field.name: field for field in OUTPUTS}
    for tensor in contract.LANGUAGE_MODEL.outputs:
        assert (outputs[tensor.name].dtype, outputs[tensor.name].dims) == (tensor.dtype, tensor.dims)


# --- launch --------------------------------------------------------------------------------------------------------------


def test_one_server_per_rank_and_one_that_answers():
    server = ["tritonserver", "--model-repository=r", "--model-control-mode=explicit", "--load-model=*"]
    region = "--backend-config=python,shm-region-prefix-name=vl2-x-"
    for one in (0, 1):
        assert with_ranks(server, one, prefix="vl2-x-") == [*server, "--disable-auto-complete-config", region]
    assert with_ranks(server, 1, 10**6)[-2] == FACTS["launch"]["gpu_tensors"] + "0:1000000"
    words = with_ranks(server, 4, 10**6, "vl2-x-")
    assert words[0] == "mpirun"
    ranks = " ".join(words).split(" : ")
    assert len(ranks) == 4
    for number, rank in enumerate(ranks):
        for flag in FACTS["launch"]["always"]:
            assert flag in rank
        assert f"{region}{number}-" in rank and (FACTS["launch"]["gpu_tensors"] in rank) == (number == 0)
        for flag in FACTS["launch"]["other_ranks"]:
            assert (flag in rank.split()) == (number > 0 or flag.startswith("--model-control-mode"))


# --- wrong inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "recipe", "reason"),
    [
        (
            "VideoLLaMA2-7B",
            fp8_on_ampere := Recipe("float16", "fp8", gpu="A100-80"),
            "needs compute capability 8.9.*int4_awq",
        ),
        ("VideoLLaMA2-8x7B", fp8_on_ampere, "needs compute capability 8.9.*or no --quantize"),
        ("VideoLLaMA2-7B", Recipe("float16", "fp8"), "quantization is fp8 and calibration is none.*train.jsonl"),
        ("VideoLLaMA2-7B", Recipe("float16", calibration="texts"), "--quantize needs --calibration"),
        (
            "VideoLLaMA2-8x7B",
            Recipe("float16", "fp8", tp=2, ep=2, calibration="texts"),
            "ep is 2 with fp8.*leave out --ep",
        ),
        (
            "VideoLLaMA2-72B",
            Recipe("float16", "int4_awq", tp=2, calibration="texts"),
            "would split, as the MLP's width is 29568",
        ),
        ("VideoLLaMA2-7B", Recipe("float16", "fp8", calibration="/cnn_dailymail"), "contains 'cnn_dailymail'"),
        ("VideoLLaMA2.1-7B-16F", Recipe("float16", tp=8), "does not divide 28 heads.*use one of 1, 2, 4"),
        ("VideoLLaMA2-7B", Recipe("float16", tp=3), "does not divide 32 heads"),
        ("VideoLLaMA2-72B", Recipe("float16", pp=3), "does not divide 80 layers"),
        ("VideoLLaMA2-7B", Recipe("float16", tp=2, ep=2), "has no experts"),
        ("VideoLLaMA2-8x7B", Recipe("float16", tp=2, ep=4), "must divide tp"),
        ("VideoLLaMA2-7B", Recipe("float16", max_seq_len=65536), "supports 32768 positions"),
        ("VideoLLaMA2-7B", Recipe("float16", max_seq_len=800), "media alone take 845"),
        ("VideoLLaMA2-7B", Recipe("float16", gpu="Voodoo2"), "it must be one of A100-80"),
        ("VideoLLaMA2-7B", Recipe("float16", "int1"), "quantization is 'int1'"),
        ("VideoLLaMA2-7B", Recipe("float64"), "dtype is 'float64'"),
    ],
)
def test_unsupported_builds_are_refused_before_any_work(checkpoint, recipe, reason):
    with pytest.raises(InvalidRequest, match=reason):
        recipe.commands(published_config(checkpoint), Path("llm"), Path("out"))


# --- profiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_profiles_cover_every_planned_shape(name):
    from videollama_core.model.frame_plan import plan_time_steps

    config = published_config(name)
    for graph in ENGINE_GRAPHS:
        if graph in graphs_of(config):
            for shapes in profiles(graph, config):
                for least, usual, most in shapes.values():
                    assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))

    def lengths(*videos):
        return [len(plan_time_steps(ids, config.connector_padding)[0]) for ids in videos]

    several = [list(range(count)) for count in range(2, MAX_FRAMES + 1)]
    pictures = lengths(*([0] * count for count in range(2, MAX_FRAMES + 1)))
    for planned, profile in zip((pictures, lengths([0, 1] * 8, *several)), profiles(CONNECTOR, config), strict=True):
        low, _, high = (shape[0] for shape in profile["frame_index"])
        assert low <= min(planned) and max(planned) <= high
    # One frame needs no more than 4 steps in time; the profile of 34 cost 260 MB of scratch memory.
    assert profiles(CONNECTOR, config)[0]["frame_index"][2] == (4,)


def test_the_release_is_named_in_one_place():
    source = (ROOT / "converters/videollama_converters/tensorrt_llm/recipe.py").read_text("utf-8")
    assert FACTS["source"].endswith("v1.2.1") and 'RELEASE = "1.2.1"' in source
