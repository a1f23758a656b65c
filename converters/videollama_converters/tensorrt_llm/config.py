"""Renders tensorrt_llm/config.pbtxt for TensorRT-LLM 1.2.1's C++ backend, with every tensor and parameter of its template.

Names, types, dims, reshapes, ragged and optional flags, and parameters are those of
triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt at v1.2.1.
"""

from dataclasses import dataclass, replace

from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.model.config import ModelConfig

WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
TABLE_TYPES = {"bfloat16": "TYPE_BF16", "float16": "TYPE_FP16"}
REQUIRED = ("input_lengths", "request_output_len")


@dataclass(frozen=True)
class Field:
    """An input or output in the config.pbtxt of TensorRT-LLM's backend."""

    name: str
    dtype: str  # without TYPE_
    dims: tuple[int, ...]
    scalar: bool = False  # dims [1], reshaped to []
    ragged: bool = False  # requests of different sizes may share a batch

    def render(self, optional: bool) -> str:
        dims = ", ".join(map(str, self.dims))
        rest = ", reshape: { shape: [ ] }" * self.scalar
        rest += ", allow_ragged_batch: true" * self.ragged + ", optional: true" * optional
        return f'  {{ name: "{self.name}", data_type: TYPE_{self.dtype}, dims: [ {dims} ]{rest} }}'


def _scalars(dtype: str, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, dtype, (1,), scalar=True) for name in names)


def _ragged(dtype: str, dims: tuple[int, ...], *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, dtype, dims, ragged=True) for name in names)


INPUTS: tuple[Field, ...] = (
    *_ragged("INT32", (-1,), "input_ids"),
    *_ragged("FP16", (-1, -1), "encoder_input_features"),
    *_scalars("INT32", "encoder_output_lengths", "input_lengths", "request_output_len", "num_return_sequences"),
    *_ragged("INT32", (-1,), "draft_input_ids", "decoder_input_ids"),
    *_scalars("INT32", "decoder_input_lengths"),
    *_ragged("FP32", (-1, -1), "draft_logits"),
    *_scalars("FP32", "draft_acceptance_threshold"),
    *_scalars("INT32", "end_id", "pad_id"),
    *_ragged("INT32", (2, -1), "stop_words_list", "bad_words_list"),
    *_ragged("FP32", (-1,), "embedding_bias"),
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
    *_ragged("", (-1, -1), "prompt_embedding_table"),  # in the engine's type
    *_ragged("UINT64", (-1,), "prompt_table_extra_ids"),
    *_scalars("INT32", "prompt_vocab_size"),
    *_ragged("BOOL", (-1, -1), "cross_attention_mask"),
    Field("mrope_rotary_cos_sin", "FP32", (-1,)),
    Field("mrope_position_deltas", "INT64", (1,)),
    *_scalars("UINT64", "lora_task_id"),
    *_ragged("FP16", (-1, -1), "lora_weights"),
    *_ragged("INT32", (-1, 3), "lora_config"),
    *_ragged("UINT8", (-1,), "context_phase_params"),
    *_ragged("BOOL", (1,), "skip_cross_attn_blocks"),
    *_ragged(
        "INT32",
        (-1,),
        "retention_token_range_starts",
        "retention_token_range_ends",
        "retention_token_range_priorities",
        "retention_token_range_durations_ms",
    ),
    *_ragged("INT32", (1,), "retention_decode_priority", "retention_decode_duration_ms"),
    *_ragged("STRING", (1,), "guided_decoding_guide_type", "guided_decoding_guide"),
    *_ragged("INT32", (1,), "lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"),
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
    """Every parameter of the template; "" is what the template's own scripts write for an unset one."""
    chosen = {
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",  # the prompt table may stay on the GPU
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": engine,
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": "0.85",  # the encoders' engines share GPU 0
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "100",
        # Media positions of all videos have the same token ids. Without a hash per position the backend would reuse one video's KV
        # cache for another. Reuse is safe because the entry sends `prompt_table_extra_ids` with every table.
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
    """The content of the file. Args: engine, tokenizer: paths as the server sees them. Raises: InvalidRequest."""
    recipe.check(config)
    table = TABLE_TYPES[recipe.dtype].removeprefix("TYPE_")
    inputs = [
        replace(field, dtype=field.dtype or table).render(optional=field.name not in REQUIRED) for field in INPUTS
    ]
    outputs = [field.render(optional=False) for field in OUTPUTS]
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
