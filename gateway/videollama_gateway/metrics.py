"""The gateway's Prometheus metrics, as defined in videollama_core/telemetry/metric_definitions.py."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from videollama_core.telemetry import metric_definitions
from videollama_core.telemetry.metric_definitions import MODEL_LABEL, MetricDefinition


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._histogram(metric_definitions.FIRST_TOKEN)
        self.latency = self._histogram(metric_definitions.LATENCY)
        self.per_token = self._histogram(metric_definitions.PER_TOKEN)
        self.stage = self._histogram(metric_definitions.STAGE)
        self.prompt_tokens = self._counter(metric_definitions.PROMPT_TOKENS)
        self.generated_tokens = self._counter(metric_definitions.GENERATION_TOKENS)
        self.cache_queries = self._counter(metric_definitions.CACHE_QUERIES)
        self.cache_hits = self._counter(metric_definitions.CACHE_HITS)
        self.rejected = self._counter(metric_definitions.REJECTED)
        running = metric_definitions.RUNNING
        self.running = Gauge(running.name, running.meaning, (MODEL_LABEL,), registry=self.registry)

    def _histogram(self, definition: MetricDefinition) -> Histogram:
        labels = (MODEL_LABEL, *definition.labels)
        return Histogram(
            definition.name, definition.meaning, labels, buckets=definition.buckets, registry=self.registry
        )

    def _counter(self, definition: MetricDefinition) -> Counter:
        return Counter(definition.name, definition.meaning, (MODEL_LABEL, *definition.labels), registry=self.registry)

    def expose(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
