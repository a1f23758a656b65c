"""tensorrt_llm/config.pbtxt of TensorRT-LLM 1.2.1's C++ backend, complete: every tensor and parameter of its template.

Names, types, dims and parameters are those of triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt at
v1.2.1. A scalar has dims [1] and is reshaped to [], as there.
"""

from dataclasses import dataclass

from videollama_converters.tensorrt_llm import KV_DTYPES, Recipe
from videollama_core.model.config import ModelConfig

WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
TABLE_TYPES = {"bfloat16": "TYPE_BF16", "float16": "TYPE_FP16"}
REQUIRED = ("input_ids", "input_lengths", "request_output_len")


@dataclass(frozen=True)
class Field:
    name: str
    dtype: str  # without TYPE_
    dims: tuple[int, ...]
    scalar: bool = False

    def render(self, optional: bool) -> str:
        dims = ", ".join(map(str, self.dims))
        rest = ", reshape: { shape: [ ] }" * self.scalar + ", optional: true" * optional
        return f'  {{ name: "{self.name}", data_type: TYPE_{self.dtype}, dims: [ {dims} ]{rest} }}'


def _scalars(dtype: str, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, dtype, (1,), scalar=True) for name in names)


INPUTS: tuple[Field, ...] = (
    Field("input_ids", "INT32", (-1,)),
    Field("encoder_input_features", "FP16", (-1, -1)),
    *_scalars("INT32", "encoder_output_lengths"),
    *_scalars("INT32", "input_lengths", "request_output_len"),
    *_scalars("INT32", "num_return_sequences"),
    Field("draft_input_ids", "INT32", (-1,)),
    Field("decoder_input_ids", "INT32", (-1,)),
    *_scalars("INT32", "decoder_input_lengths"),
    Field("draft_logits", "FP32", (-1, -1)),
    *_scalars("FP32", "draft_acceptance_threshold"),
    *_scalars("INT32", "end_id", "pad_id"),
    Field("stop_words_list", "INT32", (2, -1)),
    Field("bad_words_list", "INT32", (2, -1)),
    Field("embedding_bias", "FP32", (-1,)),
    *_scalars("INT32", "beam_width"),
    *_scalars("FP32", "temperature"),
    *_scalars("INT32", "runtime_top_k"),
    *_scalars("FP32", "runtime_top_p", "runtime_top_p_min", "runtime_top_p_decay"),
    *_scalars("INT32", "runtime_top_p_reset_ids"),
    *_scalars("FP32", "len_penalty"),
    *_scalars("BOOL", "early_stopping"),
    *_scalars("FP32", "repetition_penalty"),
    *_scalars("INT32", "min_tokens"),
    *_scalars("FP32", "beam_search_diversity_rate", "presence_penalty", "frequency_penalty"),
    *_scalars("UINT64", "seed"),
    *_scalars(
        "BOOL",
        "return_log_probs",
        "return_context_logits",
        "return_generation_logits",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "exclude_input_in_output",
        "stop",
        "streaming",
    ),
    Field("prompt_embedding_table", "", (-1, -1)),  # in the engine's type
    Field("prompt_table_extra_ids", "UINT64", (-1,)),
    *_scalars("INT32", "prompt_vocab_size"),
    Field("cross_attention_mask", "BOOL", (-1, -1)),
    *_scalars("BOOL", "skip_cross_attn_blocks"),
    Field("mrope_rotary_cos_sin", "FP32", (-1,)),
    *_scalars("INT64", "mrope_position_deltas"),
    *_scalars("UINT64", "lora_task_id"),
    Field("lora_weights", "FP16", (-1, -1)),
    Field("lora_config", "INT32", (-1, 3)),
    Field("context_phase_params", "UINT8", (-1,)),
    Field("retention_token_range_starts", "INT32", (-1,)),
    Field("retention_token_range_ends", "INT32", (-1,)),
    Field("retention_token_range_priorities", "INT32", (-1,)),
    Field("retention_token_range_durations_ms", "INT32", (-1,)),
    *_scalars("INT32", "retention_decode_priority", "retention_decode_duration_ms"),
    *_scalars("STRING", "guided_decoding_guide_type", "guided_decoding_guide"),
    *_scalars("INT32", "lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"),
)
OUTPUTS: tuple[Field, ...] = (
    Field("output_ids", "INT32", (-1, -1)),
    Field("sequence_length", "INT32", (-1,)),
    Field("cum_log_probs", "FP32", (-1,)),
    Field("output_log_probs", "FP32", (-1, -1)),
    Field("context_logits", "FP32", (-1, -1)),
    Field("generation_logits", "FP32", (-1, -1, -1)),
    Field("batch_index", "INT32", (1,)),
    Field("sequence_index", "INT32", (1,)),
    Field("context_phase_params", "UINT8", (-1,)),
    Field("kv_cache_alloc_new_blocks", "INT32", (1,)),
    Field("kv_cache_reused_blocks", "INT32", (1,)),
    Field("kv_cache_alloc_total_blocks", "INT32", (1,)),
    Field("arrival_time_ns", "INT64", (1,)),
    Field("first_scheduled_time_ns", "INT64", (1,)),
    Field("first_token_time_ns", "INT64", (1,)),
    Field("last_token_time_ns", "INT64", (1,)),
    Field("acceptance_rate", "FP32", (1,)),
    Field("total_accepted_draft_tokens", "INT32", (1,)),
    Field("total_draft_tokens", "INT32", (1,)),
    Field("num_input_tokens", "INT32", (1,)),
    Field("num_output_tokens", "INT32", (1,)),
)


def parameters(recipe: Recipe, engine: str, tokenizer: str) -> dict[str, str]:
    """Every parameter of the template; "" is what the template's own scripts leave where nothing is chosen."""
    chosen = {
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",  # the table may stay on the GPU
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": engine,
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": "0.85",  # the encoders' engines live on GPU 0 as well
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "100",
        # Media positions of all videos hold the same ids. Without a hash for each the backend would take one video's keys and
        # values for another's: reuse is on, because the entry sends `prompt_table_extra_ids` with every table.
        "enable_kv_cache_reuse": "true",
        "normalize_log_probs": "true",
        "enable_chunked_context": "true",
        "gpu_device_ids": ",".join(map(str, range(recipe.world_size))),
        "executor_worker_path": WORKER,
        "multi_block_mode": "true",
        "cuda_graph_mode": "true",
        "tokenizer_dir": tokenizer,
    }
    return {name: chosen.get(name, "") for name in PARAMETERS}


PARAMETERS = (
    "max_beam_width",
    "FORCE_CPU_ONLY_INPUT_TENSORS",
    "gpt_model_type",
    "gpt_model_path",
    "encoder_model_path",
    "max_tokens_in_paged_kv_cache",
    "max_attention_window_size",
    "sink_token_length",
    "batch_scheduler_policy",
    "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction",
    "kv_cache_host_memory_bytes",
    "kv_cache_onboard_blocks",
    "enable_trt_overlap",
    "exclude_input_in_output",
    "cancellation_check_period_ms",
    "stats_check_period_ms",
    "recv_poll_period_ms",
    "iter_stats_max_iterations",
    "request_stats_max_iterations",
    "enable_kv_cache_reuse",
    "normalize_log_probs",
    "enable_chunked_context",
    "gpu_device_ids",
    "participant_ids",
    "num_nodes",
    "lora_cache_optimal_adapter_size",
    "lora_cache_max_adapter_size",
    "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes",
    "lora_prefetch_dir",
    "decoding_mode",
    "executor_worker_path",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
    "medusa_choices",
    "eagle_choices",
    "gpu_weights_percent",
    "enable_context_fmha_fp32_acc",
    "multi_block_mode",
    "cuda_graph_mode",
    "cuda_graph_cache_size",
    "speculative_decoding_fast_logits",
    "tokenizer_dir",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
)


def render_config(recipe: Recipe, config: ModelConfig, engine: str, tokenizer: str, max_queue_size: int = 128) -> str:
    """The whole file. Args: engine, tokenizer: paths as the server sees them. Raises: InvalidRequest."""
    recipe.check(config)
    assert recipe.kv_dtype in KV_DTYPES
    table = TABLE_TYPES[recipe.dtype].removeprefix("TYPE_")
    inputs = [
        Field(field.name, field.dtype or table, field.dims, field.scalar).render(field.name not in REQUIRED)
        for field in INPUTS
    ]
    outputs = [field.render(False) for field in OUTPUTS]
    queue = f"default_queue_policy: {{ max_queue_size: {max_queue_size} }}"
    lines = [
        "# The language model on TensorRT-LLM 1.2.1's C++ backend; made by vl2 convert.",
        'name: "tensorrt_llm"',
        'backend: "tensorrtllm"',
        f"max_batch_size: {recipe.max_batch_size}",
        "model_transaction_policy { decoupled: true }",
        f"dynamic_batching {{ preferred_batch_size: [ {recipe.max_batch_size} ], max_queue_delay_microseconds: 0, {queue} }}",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
        "instance_group [ { count: 1, kind: KIND_CPU } ]",
    ]
    for name, value in parameters(recipe, engine, tokenizer).items():
        lines.append(f'parameters {{ key: "{name}", value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"
