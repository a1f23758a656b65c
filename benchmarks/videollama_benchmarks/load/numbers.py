"""Computes percentiles, rates, time per stage and goodput from samples, and compares a run with an earlier one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videollama_benchmarks.load.drive import Load, Sample

PERCENTILES = (50, 90, 99)
LATENCIES = {
    "first_text": "first text",
    "between_pieces": "between pieces",
    "per_token": "per token",
    "whole_answer": "whole answer",
}
GAIN = 1.05  # a level whose goodput is below this multiple of the best before it is past the knee
# Compared between runs as larger is better; latencies as smaller is better.
RATES = (
    "answers_per_second",
    "tokens_per_second",
    "frames_per_second",
    "media_tokens_per_second",
    "goodput_per_second",
)


@dataclass(frozen=True)
class Target:
    """Latency limits in seconds for goodput; None for no limit."""

    first_text: float | None = None
    whole_answer: float | None = None

    def is_met(self, sample: Sample) -> bool:
        return (
            sample.error is None
            and (self.first_text is None or (sample.first or 0.0) <= self.first_text)
            and (self.whole_answer is None or (sample.total or 0.0) <= self.whole_answer)
        )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds, of values in seconds; empty without values."""
    if not values:
        return {}
    results = np.percentile(np.asarray(values), PERCENTILES)
    return {f"p{level}": round(1e3 * float(value), 3) for level, value in zip(PERCENTILES, results, strict=True)}


def per_token(sample: Sample) -> float | None:
    """Mean seconds per token after the first text; None for answers with fewer than two tokens."""
    if sample.total is None or sample.first is None or sample.tokens < 2:
        return None
    return (sample.total - sample.first) / (sample.tokens - 1)


def waterfall(sample: Sample) -> dict[str, float]:
    """Seconds per stage, none counted twice: the time in `perception` outside its two stages becomes `between_stages`."""
    times = {stage: value for stage, value in sample.stages.items() if stage not in ("perception", "total")}
    if "perception" in sample.stages:
        inner = times.get("preprocess", 0.0) + times.get("encoder", 0.0)
        times["between_stages"] = max(0.0, sample.stages["perception"] - inner)
    return times


def summarise(samples: Sequence[Sample], seconds: float, load: Load, target: Target) -> dict[str, Any]:
    """One level of load as JSON; latencies in milliseconds, rates per second."""
    answered = [sample for sample in samples if sample.error is None]
    with_media = [sample for sample in answered if sample.kind != "text"]
    hits = [sample for sample in with_media if not sample.stages.get("encoder", 0.0)]
    times = [waterfall(sample) for sample in answered]
    stages = sorted({stage for by_stage in times for stage in by_stage})
    per = {
        "first_text": [sample.first for sample in answered if sample.first is not None],
        "between_pieces": [gap for sample in answered for gap in sample.gaps],
        "per_token": [value for sample in answered if (value := per_token(sample)) is not None],
        "whole_answer": [sample.total for sample in answered if sample.total is not None],
    }
    return {
        "load": {"concurrency": load.concurrency, "rate": load.rate, "seconds": load.seconds, "title": load.title},
        "seconds": round(seconds, 3),
        "requests": len(samples),
        "answered": len(answered),
        "errors": dict(Counter(sample.error for sample in samples if sample.error)),
        "answers_per_second": round(len(answered) / seconds, 3),
        "tokens_per_second": round(sum(sample.tokens for sample in answered) / seconds, 2),
        "frames_per_second": round(sum(sample.frames for sample in answered) / seconds, 2),
        "media_tokens_per_second": round(sum(sample.media_tokens for sample in answered) / seconds, 2),
        "goodput_per_second": round(sum(map(target.is_met, samples)) / seconds, 3),
        "cache": {
            "with_media": len(with_media),
            "repeated": sum(sample.repeated for sample in with_media),
            "hits": len(hits),
        },
        "milliseconds": {name: percentiles(values) for name, values in per.items()},
        "milliseconds_of_kind": {
            kind: percentiles([sample.first or 0.0 for sample in answered if sample.kind == kind])
            for kind in sorted({sample.kind for sample in answered})
        },
        "stage_milliseconds": {
            stage: percentiles([by_stage[stage] for by_stage in times if stage in by_stage]) for stage in stages
        },
    }


def knee(levels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The level beyond which more load only adds latency: the last that raised goodput by 5 % over the best before it."""
    best = levels[0]
    for level in levels[1:]:
        if level["goodput_per_second"] > GAIN * best["goodput_per_second"]:
            best = level
    return best


def compare(now: dict[str, Any], earlier: dict[str, Any]) -> list[tuple[str, str, float, float, float]]:
    """Rows (level, figure, earlier, now, ratio; above 1 is better) for every level of load that both runs have."""
    rows = []
    before = {level["load"]["title"]: level for level in earlier["levels"]}
    for level in now["levels"]:
        old = before.get(level["load"]["title"])
        if old is None:
            continue
        for name in (name for name in RATES if name in old):
            rows.append((level["load"]["title"], name, old[name], level[name], _ratio(level[name], old[name])))
        for name, words in LATENCIES.items():
            for point in ("p50", "p99"):
                if point in level["milliseconds"][name] and point in old["milliseconds"].get(name, {}):
                    was, is_now = old["milliseconds"][name][point], level["milliseconds"][name][point]
                    rows.append((level["load"]["title"], f"{words} {point} ms", was, is_now, _ratio(was, is_now)))
    return rows


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("inf") if numerator else 1.0
