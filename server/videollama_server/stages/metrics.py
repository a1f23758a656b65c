"""Counters and gauges of a stage on Triton's metrics port."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import triton_python_backend_utils as pb

_PUBLISH_SECONDS = 0.2


@dataclass(frozen=True)
class Metric:
    """One figure. Names of counters, which only grow, end in `_total`, as Prometheus wants them."""

    name: str
    meaning: str
    read: Callable[[], int]

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


class MetricsPublisher:
    """Publishes figures five times a second, from a thread of its own: a hot loop must not wait for the server."""

    def __init__(self, model: str, metrics: tuple[Metric, ...]) -> None:
        kinds = {True: pb.MetricFamily.COUNTER, False: pb.MetricFamily.GAUGE}
        self._metrics = metrics
        # The families are kept: a metric dies with its family.
        self._families = [
            pb.MetricFamily(name=one.name, description=one.meaning, kind=kinds[one.is_counter]) for one in metrics
        ]
        self._published = [family.Metric(labels={"model": model}) for family in self._families]
        self._last = [0] * len(metrics)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(_PUBLISH_SECONDS):
            self._publish()

    def _publish(self) -> None:
        for place, (metric, published) in enumerate(zip(self._metrics, self._published, strict=True)):
            value = metric.read()
            if not metric.is_counter:
                published.set(value)
            elif value > self._last[place]:
                published.increment(value - self._last[place])
                self._last[place] = value

    def close(self) -> None:
        """Metrics go before their families, and both before the stub's own end, or the stub crashes."""
        self._closing.set()
        self._thread.join()
        self._published.clear()
        self._families.clear()
