"""Reports a run as tables on the terminal, a JSON file and two plots."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from videollama_benchmarks.load.numbers import LATENCIES

matplotlib.use("Agg")
_RATES = {
    "answers/s": "answers_per_second",
    "tokens/s": "tokens_per_second",
    "frames/s": "frames_per_second",
    "good/s": "goodput_per_second",
}
FORMAT = 1  # of the JSON file
ORDER = ("prompt", "preprocess", "between_stages", "encoder", "prefill", "decode")  # in which a request passes them


def print_levels(console: Console, run: dict[str, Any]) -> None:
    """Print one line of rates and one of latencies per level of load, then the stages at the knee, slowest first."""
    rates = Table("load", *_RATES, "cache hits", "errors")
    times = Table("load", *LATENCIES.values(), title="ms: p50 / p90 / p99")
    if any("roofline" in level for level in run["levels"]):
        rates.add_column("of roofline")
    for level in run["levels"]:
        cells = [
            level["load"]["title"],
            *(f"{level[name]:.1f}" for name in _RATES.values()),
            f"{level['cache']['hits']} of {level['cache']['with_media']}",
            ", ".join(f"{count} {kind}" for kind, count in level["errors"].items()),
        ]
        if "roofline" in level:
            cells.append(f"{100 * level['roofline']['share']:.1f} %")
        rates.add_row(*cells)
        times.add_row(level["load"]["title"], *(_triple(level["milliseconds"][name]) for name in LATENCIES))
    console.print(rates)
    console.print(times)
    knee = next(level for level in run["levels"] if level["load"]["title"] == run["knee"])
    stages = Table("stage", "ms: p50 / p90 / p99", title=f"time per stage at {run['knee']}")
    ordered = sorted(knee["stage_milliseconds"].items(), key=lambda item: -item[1].get("p50", 0.0))
    for stage, values in ordered:
        stages.add_row(stage, _triple(values))
    console.print(stages)


def print_comparison(console: Console, rows: list[tuple[str, str, float, float, float]], earlier: Path) -> None:
    """Print the rows of `numbers.compare`."""
    table = Table("load", "figure", "earlier", "now", "improvement", title=f"compared with {earlier}")
    for level, name, was, now, ratio in rows:
        style = "red" if ratio < 0.95 else "green" if ratio > 1.05 else ""
        table.add_row(level, name.replace("_", " "), f"{was:g}", f"{now:g}", f"{ratio:.2f}", style=style)
    console.print(table)


def _triple(values: dict[str, float]) -> str:
    return (
        " / ".join(f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}" for value in values.values()) or "-"
    )


def write(folder: Path, run: dict[str, Any]) -> list[Path]:
    """Write bench.json, latency.png and waterfall.png. Returns: their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("bench.json", "latency.png", "waterfall.png")]
    paths[0].write_text(json.dumps(run, indent=1) + "\n", "utf-8")
    _draw_latency(run, paths[1])
    _draw_waterfall(run, paths[2])
    return paths


def _draw_latency(run: dict[str, Any], path: Path) -> None:
    """Plot milliseconds over answers per second, one line per percentile; the knee is marked."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, name in zip(axes, ("first_text", "whole_answer"), strict=True):
        levels = [level for level in run["levels"] if level["milliseconds"][name]]
        for point in ("p50", "p90", "p99"):
            x = [level["answers_per_second"] for level in levels]
            place.plot(x, [level["milliseconds"][name][point] for level in levels], "o-", label=point)
        for level in levels:
            if level["load"]["title"] == run["knee"]:
                place.axvline(level["answers_per_second"], color="grey", ls=":", label=f"knee: {run['knee']}")
        place.set(
            xlabel="answers per second", ylabel="milliseconds", title=LATENCIES[name], xlim=(0, None), ylim=(0, None)
        )
        place.grid(alpha=0.3)
        place.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_waterfall(run: dict[str, Any], path: Path) -> None:
    """Plot the median time per stage, one bar per level of load."""
    from matplotlib import pyplot

    stage_names = {stage for level in run["levels"] for stage in level["stage_milliseconds"]}
    stages = sorted(stage_names, key=lambda stage: (ORDER.index(stage) if stage in ORDER else len(ORDER), stage))
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.4 * len(run["levels"])), layout="constrained")
    for place, level in enumerate(run["levels"]):
        left = 0.0
        for color, stage in enumerate(stages):
            value = level["stage_milliseconds"].get(stage, {}).get("p50", 0.0)
            axes.barh(place, value, left=left, color=f"C{color % 10}", label=stage if place == 0 else None)
            left += value
    axes.set_yticks(range(len(run["levels"])), [level["load"]["title"] for level in run["levels"]])
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds, median of each stage")
    if stages:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
