"""The gateway's Prometheus metrics, as defined in videollama_core/telemetry/figures.py."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from videollama_core.telemetry import figures
from videollama_core.telemetry.figures import MODEL_LABEL, Figure


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._histogram(figures.FIRST_TOKEN)
        self.latency = self._histogram(figures.LATENCY)
        self.per_token = self._histogram(figures.PER_TOKEN)
        self.stage = self._histogram(figures.STAGE)
        self.prompt_tokens = self._counter(figures.PROMPT_TOKENS)
        self.generated_tokens = self._counter(figures.GENERATION_TOKENS)
        self.cache_queries = self._counter(figures.CACHE_QUERIES)
        self.cache_hits = self._counter(figures.CACHE_HITS)
        self.rejected = self._counter(figures.REJECTED)
        running = figures.RUNNING
        self.running = Gauge(running.name, running.meaning, (MODEL_LABEL,), registry=self.registry)

    def _histogram(self, figure: Figure) -> Histogram:
        labels = (MODEL_LABEL, *figure.labels)
        return Histogram(figure.name, figure.meaning, labels, buckets=figure.buckets, registry=self.registry)

    def _counter(self, figure: Figure) -> Counter:
        return Counter(figure.name, figure.meaning, (MODEL_LABEL, *figure.labels), registry=self.registry)

    def expose(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
