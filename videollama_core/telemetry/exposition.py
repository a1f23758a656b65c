"""Figures of one process as text for Prometheus, and the texts of several processes as one."""

from collections.abc import Iterable
from itertools import accumulate

from videollama_core.telemetry.figures import MODEL_LABEL, Figure

UNFINISHED = ".new"  # the end of the name of a file that such a text is being written to


class Exposition:
    """The values of some figures; those without labels of their own are there from the beginning, as 0.

    Args:
        model: whose figures they are, the first label of each; empty for figures that name it otherwise.
    """

    def __init__(self, model: str, figures: Iterable[Figure]) -> None:
        self._named = {MODEL_LABEL: model} if model else {}
        self._values: dict[Figure, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Figure, dict[tuple[str, ...], list[int]]] = {}
        for figure in figures:
            self._values[figure] = {} if figure.labels else {(): 0}
            if figure.buckets:
                self._histograms[figure] = {} if figure.labels else {(): [0] * (len(figure.buckets) + 1)}

    def set(self, figure: Figure, value: float, *labels: str) -> None:
        """Of a gauge, or a counter that is kept elsewhere."""
        self._values[figure][labels] = value

    def add(self, figure: Figure, value: float, *labels: str) -> None:
        """What a histogram observes, or a counter grows by."""
        values = self._values[figure]
        values[labels] = values.get(labels, 0) + value
        if figure.buckets:
            counts = self._histograms[figure].setdefault(labels, [0] * (len(figure.buckets) + 1))
            counts[sum(bound < value for bound in figure.buckets)] += 1

    def text(self) -> str:
        lines = []
        for figure, values in self._values.items():
            lines += [f"# HELP {figure.name} {figure.meaning}", f"# TYPE {figure.name} {figure.kind}"]
            for labels, value in values.items():
                named = self._named | dict(zip(figure.labels, labels, strict=True))
                if not figure.buckets:
                    lines.append(_sample(figure.name, named, value))
                    continue
                counts = list(accumulate(self._histograms[figure][labels]))
                for bound, count in zip((*map(str, figure.buckets), "+Inf"), counts, strict=True):
                    lines.append(_sample(f"{figure.name}_bucket", named | {"le": bound}, count))
                lines += [
                    _sample(f"{figure.name}_sum", named, value),
                    _sample(f"{figure.name}_count", named, counts[-1]),
                ]
        return "".join(f"{line}\n" for line in lines)


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    named = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{named}}} {value!r}"


def joined(texts: Iterable[str]) -> str:
    """Texts of `Exposition.text`, a figure's lines together and explained once, as the format wants them."""
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
