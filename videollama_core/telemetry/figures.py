"""Every figure that server and gateway publish, named once: the names that dashboards of vLLM know, with the prefix vl2_.

docs/observability.md explains each; a test holds its table against what a running server and gateway say.
"""

from dataclasses import dataclass
from typing import Literal

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
MODEL_LABEL = "model_name"


@dataclass(frozen=True)
class Figure:
    """One figure for Prometheus. Counters, which only grow, end in `_total`.

    Args:
        buckets: upper bounds, of a histogram alone.
        labels: beside MODEL_LABEL, which every figure has.
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


# Of server and gateway alike, each as it sees them.
FIRST_TOKEN = Figure("vl2_time_to_first_token_seconds", "Until the first token or text", _SECONDS)
LATENCY = Figure("vl2_e2e_request_latency_seconds", "Until the answer was whole", _SECONDS)
PER_TOKEN = Figure("vl2_inter_token_latency_seconds", "Mean time between two tokens of an answer", _TOKEN_SECONDS)
STAGE = Figure("vl2_stage_seconds", "Time that a stage worked for an answer", _SECONDS, ("stage",))
PROMPT_TOKENS = Figure("vl2_prompt_tokens_total", "Tokens of prompts, media included")
GENERATION_TOKENS = Figure("vl2_generation_tokens_total", "Tokens of answers")
CACHE_QUERIES = Figure("vl2_mm_cache_queries_total", "Questions about media")
CACHE_HITS = Figure("vl2_mm_cache_hits_total", "Those whose media was known, or made for another caller")
REJECTED = Figure("vl2_rejected_total", "Requests without an answer, by kind of error", labels=("reason",))
RUNNING = Figure("vl2_num_requests_running", "Requests that hold a slot of the language model; of the gateway: all")

# Of the server alone: the endpoint's.
REFUSED = Figure(
    "vl2_endpoint_rejected_total", "Requests that were refused before a stage was asked", labels=("reason",)
)
# The entry's.
CACHE_EVICTIONS = Figure("vl2_mm_cache_evictions_total", "Media that gave way to newer ones")
CACHE_BYTES = Figure("vl2_mm_cache_bytes", "Memory of what is kept about media")
# The language model's.
WAITING = Figure("vl2_num_requests_waiting", "Requests that wait for a slot of the language model")
QUEUE = Figure("vl2_request_queue_time_seconds", "Until a request got its slot", _SECONDS)
PREFILL = Figure("vl2_request_prefill_time_seconds", "From the slot to the first token", _SECONDS)
DECODE = Figure("vl2_request_decode_time_seconds", "From the first token to the last", _SECONDS)
ITERATIONS = Figure("vl2_llm_iterations_total", "Iterations of the scheduler")
DECODE_STEPS = Figure("vl2_llm_decode_steps_total", "Decoding steps, one for all running requests")
GENERATED = Figure("vl2_llm_generated_tokens_total", "Tokens generated, those of answers that were left included")
CANCELLED = Figure("vl2_llm_cancelled_total", "Requests stopped, or left by their caller")
PREFIX_QUERIES = Figure("vl2_prefix_cache_queries_total", "Tokens of prompts that were taken in, media included")
PREFIX_HITS = Figure("vl2_prefix_cache_hits_total", "Those that were not computed: an earlier prompt began alike")
PREFIX_BYTES = Figure("vl2_prefix_cache_bytes", "Memory of what is kept of prompts")
PROMPTS_ALIKE = Figure("vl2_llm_prefix_hits_total", "Prompts that began like one before")
