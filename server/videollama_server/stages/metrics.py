"""The metrics of a stage, in a Prometheus text file that the endpoint serves together with Triton's own.

Triton's custom metrics are not used, because each of their calls waits for the server over shared memory (docs/log.md).
"""

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.engines.media_cache import MediaCache
from videollama_core.protocol.contract import ENTRY, RUNNING_METRIC
from videollama_core.telemetry.exposition import UNFINISHED, Exposition
from videollama_core.telemetry.metric_definitions import (
    CACHE_BYTES,
    CACHE_EVICTIONS,
    CACHE_HITS,
    CACHE_QUERIES,
    MetricDefinition,
)

FOLDER_VARIABLE = "VL2_METRICS_FOLDER"
RUNNING_REQUESTS = MetricDefinition(RUNNING_METRIC, "Requests being answered", labels=("model",))
_PUBLISH_SECONDS = 0.2


def metrics_environment(folder: Path) -> dict[str, str]:
    """Create the metrics folder of a server, and return the environment variable that tells its stages where it is."""
    folder.mkdir(mode=0o700, exist_ok=True)
    return {FOLDER_VARIABLE: str(folder)}


def publish(name: str, text: str) -> bool:
    """Write or replace the metrics file `name`; false if that fails now, as on a full disk. No effect without a folder."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        try:
            Path(folder, name + UNFINISHED).write_text(text, "utf-8")
            Path(folder, name + UNFINISHED).replace(Path(folder, name))
        except OSError:
            return False
    return True


def publish_running(stage: str, count: int) -> bool:
    """Publish the number of requests that a stage is answering; as `publish`."""
    exposition = Exposition("", (RUNNING_REQUESTS,))
    exposition.set(RUNNING_REQUESTS, count, stage)
    return publish(f"{stage}-running", exposition.text())


@dataclass(frozen=True)
class PolledMetric:
    """A counter or gauge whose value is polled."""

    definition: MetricDefinition
    read: Callable[[], int]


def cache_metrics(cache: MediaCache[Any]) -> tuple[PolledMetric, ...]:
    """Return the metrics of the entry's media cache."""
    return (
        PolledMetric(CACHE_QUERIES, lambda: cache.hits + cache.misses),
        PolledMetric(CACHE_HITS, lambda: cache.hits),
        PolledMetric(CACHE_EVICTIONS, lambda: cache.evictions),
        PolledMetric(CACHE_BYTES, lambda: cache.bytes),
    )


class MetricsPublisher:
    """Publishes metrics five times a second from a separate thread, because a hot loop must not wait for a file.

    Args:
        stage: the name of the metrics file.
        polled: counters and gauges, read at each round.
        observed: histograms and counters whose values arrive through `observe`.
    """

    def __init__(
        self, stage: str, polled: tuple[PolledMetric, ...], observed: tuple[MetricDefinition, ...] = ()
    ) -> None:
        self._stage, self._polled = stage, polled
        self._exposition = Exposition(ENTRY.name, (*(metric.definition for metric in polled), *observed))
        self._observed: queue.SimpleQueue[tuple[MetricDefinition, float, tuple[str, ...]]] = queue.SimpleQueue()
        self._published = ""
        self._publish()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def observe(self, definition: MetricDefinition, value: float, *labels: str) -> None:
        """Observe a value of a histogram, or increase a counter; labels in the definition's order. Never blocks."""
        self._observed.put((definition, value, labels))

    def _run(self) -> None:
        while not self._closing.wait(_PUBLISH_SECONDS):
            self._publish()

    def _publish(self) -> None:
        for metric in self._polled:
            self._exposition.set(metric.definition, metric.read())
        for _ in range(self._observed.qsize()):
            definition, number, labels = self._observed.get_nowait()
            self._exposition.add(definition, max(number, 0.0), *labels)
        text = self._exposition.text()
        if text != self._published and publish(self._stage, text):
            self._published = text

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
