"""Every metric that server and gateway publish, defined once: vLLM's names, which its dashboards know, with the prefix vl2_.

docs/observability.md explains each; a test compares its table with what a running server and gateway publish.
"""

from dataclasses import dataclass
from typing import Literal

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
MODEL_LABEL = "model_name"


@dataclass(frozen=True)
class MetricDefinition:
    """One Prometheus metric. Names of counters end in `_total`.

    Args:
        buckets: upper bounds of a histogram; empty for counters and gauges.
        labels: besides MODEL_LABEL, which every metric has.
    """

    name: str
    meaning: str
    buckets: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        if self.buckets:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"


# Of both server and gateway, each from its own point of view.
FIRST_TOKEN = MetricDefinition("vl2_time_to_first_token_seconds", "Time to the first token or text", _SECONDS)
LATENCY = MetricDefinition("vl2_e2e_request_latency_seconds", "Time to the complete answer", _SECONDS)
PER_TOKEN = MetricDefinition(
    "vl2_inter_token_latency_seconds", "Mean time between two tokens of an answer", _TOKEN_SECONDS
)
STAGE = MetricDefinition("vl2_stage_seconds", "Time that a stage worked for an answer", _SECONDS, ("stage",))
PROMPT_TOKENS = MetricDefinition("vl2_prompt_tokens_total", "Prompt tokens, media included")
GENERATION_TOKENS = MetricDefinition("vl2_generation_tokens_total", "Tokens of answers")
CACHE_QUERIES = MetricDefinition("vl2_mm_cache_queries_total", "Questions about media")
CACHE_HITS = MetricDefinition(
    "vl2_mm_cache_hits_total", "Questions whose media was cached, or encoded for another caller"
)
REJECTED = MetricDefinition("vl2_rejected_total", "Requests without an answer, by kind of error", labels=("reason",))
RUNNING = MetricDefinition(
    "vl2_num_requests_running", "Requests that hold a slot of the language model; at the gateway: all"
)

# Of the server alone: the endpoint's.
REFUSED = MetricDefinition(
    "vl2_endpoint_rejected_total", "Requests rejected before they reached a stage", labels=("reason",)
)
# The entry's.
CACHE_EVICTIONS = MetricDefinition("vl2_mm_cache_evictions_total", "Media evicted from the cache for newer ones")
CACHE_BYTES = MetricDefinition("vl2_mm_cache_bytes", "Memory of the media cache")
# The language model's.
WAITING = MetricDefinition("vl2_num_requests_waiting", "Requests that wait for a slot of the language model")
QUEUE = MetricDefinition("vl2_request_queue_time_seconds", "Time until a request got its slot", _SECONDS)
PREFILL = MetricDefinition("vl2_request_prefill_time_seconds", "Time from the slot to the first token", _SECONDS)
DECODE = MetricDefinition("vl2_request_decode_time_seconds", "Time from the first token to the last", _SECONDS)
ITERATIONS = MetricDefinition("vl2_llm_iterations_total", "Iterations of the scheduler")
DECODE_STEPS = MetricDefinition("vl2_llm_decode_steps_total", "Decoding steps, each for all running requests")
GENERATED = MetricDefinition("vl2_llm_generated_tokens_total", "Generated tokens, abandoned answers included")
CANCELLED = MetricDefinition("vl2_llm_cancelled_total", "Requests that were stopped or abandoned by their caller")
PREFIX_QUERIES = MetricDefinition(
    "vl2_prefix_cache_queries_total", "Prompt tokens of admitted requests, media included"
)
PREFIX_HITS = MetricDefinition(
    "vl2_prefix_cache_hits_total", "Prompt tokens reused from an earlier prompt with the same prefix"
)
PREFIX_BYTES = MetricDefinition("vl2_prefix_cache_bytes", "Memory of the prefix cache")
PROMPTS_ALIKE = MetricDefinition("vl2_llm_prefix_hits_total", "Prompts that shared a prefix with an earlier one")
