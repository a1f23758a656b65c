"""Metrics of one process in Prometheus' text format, and the texts of several processes merged into one."""

from collections.abc import Iterable
from itertools import accumulate

from videollama_core.telemetry.metric_definitions import MODEL_LABEL, MetricDefinition

UNFINISHED = ".new"  # suffix of a file to which such a text is still being written


class Exposition:
    """Current values of some metrics; metrics without labels of their own start at 0.

    Args:
        model: value of the model's label, the first of each metric; empty for metrics that name the model otherwise.
    """

    def __init__(self, model: str, definitions: Iterable[MetricDefinition]) -> None:
        self._named = {MODEL_LABEL: model} if model else {}
        self._values: dict[MetricDefinition, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[MetricDefinition, dict[tuple[str, ...], list[int]]] = {}
        for definition in definitions:
            self._values[definition] = {} if definition.labels else {(): 0}
            if definition.buckets:
                self._histograms[definition] = {} if definition.labels else {(): [0] * (len(definition.buckets) + 1)}

    def set(self, definition: MetricDefinition, value: float, *labels: str) -> None:
        """Set a gauge, or a counter that is counted elsewhere."""
        self._values[definition][labels] = value

    def add(self, definition: MetricDefinition, value: float, *labels: str) -> None:
        """Observe a value of a histogram, or add to a counter."""
        values = self._values[definition]
        values[labels] = values.get(labels, 0) + value
        if definition.buckets:
            counts = self._histograms[definition].setdefault(labels, [0] * (len(definition.buckets) + 1))
            counts[sum(bound < value for bound in definition.buckets)] += 1

    def text(self) -> str:
        """The metrics in Prometheus' text format."""
        lines = []
        for definition, values in self._values.items():
            lines += [f"# HELP {definition.name} {definition.meaning}", f"# TYPE {definition.name} {definition.kind}"]
            for labels, value in values.items():
                named = self._named | dict(zip(definition.labels, labels, strict=True))
                if not definition.buckets:
                    lines.append(_sample(definition.name, named, value))
                    continue
                counts = list(accumulate(self._histograms[definition][labels]))
                for bound, count in zip((*map(str, definition.buckets), "+Inf"), counts, strict=True):
                    lines.append(_sample(f"{definition.name}_bucket", named | {"le": bound}, count))
                lines += [
                    _sample(f"{definition.name}_sum", named, value),
                    _sample(f"{definition.name}_count", named, counts[-1]),
                ]
        return "".join(f"{line}\n" for line in lines)


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    named = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{named}}} {value!r}"


def joined(texts: Iterable[str]) -> str:
    """Merge texts of `Exposition.text`: a metric's samples together, below one HELP and TYPE, as the format requires."""
    explained: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
            if line.startswith("#"):
                if line not in explained.setdefault(name, []):
                    explained[name].append(line)
            else:
                samples.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for name in explained for line in (*explained[name], *samples.get(name, ())))
