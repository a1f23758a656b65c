"""The command `vl2 bench`."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from videollama_client.cli.connection_options import connection_options
from videollama_client.request_state import checked_seconds
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.messages import SamplingOptions

_TREE = Path(__file__).parents[3]
MEDIA = (_TREE / "benchmarks/shapes/held_out", _TREE / "benchmarks/sounds/sounds_held_out")
SWEEP = (1, 2, 4, 8, 16, 32, 64)


def _numbers(kind: type) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...]:
        try:
            numbers = tuple(kind(part) for part in (value or "").split(",") if part.strip())
        except ValueError:
            numbers = (0,)
        if any(not 0 < number <= 10_000 for number in numbers):
            raise click.BadParameter(
                f"{value!r} is not a list of numbers above 0 and up to 10,000, such as 1,4,8", context, parameter
            )
        return numbers

    return read


@click.command(
    epilog="Examples: vl2 bench --concurrency 1,8 --repeat 0.5; vl2 bench --rate 2,4,8 --mix video=3,text=1 --target-first-text 0.5"
)
@connection_options
@click.option(
    "--concurrency",
    callback=_numbers(int),
    help="Closed loop: run this many concurrent callers; separate several levels by commas, as in 1,4,8.",
)
@click.option(
    "--rate",
    callback=_numbers(float),
    help="Open loop: send this many requests per second, at random times (a Poisson process).",
)
@click.option(
    "--sweep", is_flag=True, help="Closed loop: run 1, 2, 4 ... 64 callers, until goodput no longer increases."
)
@click.option(
    "--mix",
    default="video=1",
    show_default=True,
    help="Mix kinds of media by weight, as in video=2,image=1,audio=1,text=1.",
)
@click.option(
    "--repeat",
    default=0.0,
    show_default=True,
    help="Reuse media of earlier requests in this share of the requests, from 0 to 1.",
)
@click.option(
    "--media",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Send media from this file or folder. Repeat the option for more. The default is the held-out clips of the source tree.",
)
@click.option("--seconds", default=20.0, show_default=True, help="Run each level for this many seconds.")
@click.option(
    "--warmup",
    default=3.0,
    show_default=True,
    help="Warm the server up with load for this many seconds before each level is measured.",
)
@click.option("--max-new-tokens", default=32, show_default=True, help="Limit each answer to this many tokens.")
@click.option("--timeout", default=120.0, show_default=True, help="Wait at most this many seconds for each answer.")
@click.option(
    "--target-first-text",
    type=float,
    help="Count only answers whose first text arrives within this many seconds as goodput.",
)
@click.option(
    "--target-answer", type=float, help="Count only answers that are complete within this many seconds as goodput."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Set the random seed; the same seed sends the same requests in the same order.",
)
@click.option(
    "--roofline",
    metavar="NAME",
    help="Show the share of the GPU's roofline that this published checkpoint reaches, such as VideoLLaMA2.1-7B-16F.",
)
@click.option("--gpu", help="Use the roofline of this GPU, as in `vl2 plan`; the default is this machine's GPU.")
@click.option(
    "--compare",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Compare with the bench.json of an earlier run.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/bench"),
    show_default=True,
    help="Write bench.json, latency.png and waterfall.png to this folder.",
)
def bench(
    connection: dict[str, Any],
    concurrency: tuple[int, ...],
    rate: tuple[float, ...],
    sweep: bool,
    mix: str,
    repeat: float,
    media: tuple[Path, ...],
    seconds: float,
    warmup: float,
    max_new_tokens: int,
    timeout: float,
    target_first_text: float | None,
    target_answer: float | None,
    seed: int,
    roofline: str | None,
    gpu: str | None,
    compare: Path | None,
    out: Path,
) -> None:
    """Generate load on a running server and measure latency, throughput, goodput, time per stage and cache hits.

    The default is a closed loop with one caller. New media is sent as bytes that the server has never received.
    """
    from rich.console import Console

    from videollama_benchmarks.load import numbers, report
    from videollama_benchmarks.load.drive import Load
    from videollama_benchmarks.load.levels import Traffic, measure_levels
    from videollama_benchmarks.load.mix import find_media, parse_mix
    from videollama_benchmarks.recording import machine

    if sum((bool(concurrency), bool(rate), sweep)) > 1:
        raise click.UsageError("give only one of --concurrency, --rate and --sweep")
    if not 0 <= repeat <= 1:
        raise InvalidRequest(f"--repeat is {repeat:g}; it must be a share from 0 to 1")
    if not 0 < seconds <= 86_400 or not 0 <= warmup <= 3600:
        raise InvalidRequest("--seconds must be above 0 and at most 86400, --warmup from 0 to 3600")
    bounds = _roofline(roofline, gpu)
    weights = parse_mix(mix)
    files = find_media(media or MEDIA, [kind for kind, weight in weights.items() if weight])
    loads = [Load(seconds, rate=requests_per_second) for requests_per_second in rate]
    loads = loads or [Load(seconds, callers) for callers in (SWEEP if sweep else concurrency or (1,))]
    options = {"max_new_tokens": max_new_tokens, "timeout": timeout, "temperature": 0.0}
    target = numbers.Target(target_first_text, target_answer)
    # Before the load: what is refused after it would lose the measurement.
    SamplingOptions(max_new_tokens=max_new_tokens)
    times = {"--timeout": timeout, "--target-first-text": target_first_text, "--target-answer": target_answer}
    for name, value in times.items():
        checked_seconds(value, name)
    earlier = _read_run(compare, report.FORMAT) if compare else None
    out.mkdir(parents=True, exist_ok=True)
    about = {"mix": weights, "repeat": repeat, "max_new_tokens": max_new_tokens, "seed": seed, "target": vars(target)}
    traffic = Traffic(weights, files, repeat, seed, options, warmup)
    levels = asyncio.run(measure_levels(connection, loads, traffic, target, until_flat=sweep))
    for level in levels:
        if bounds:
            level["roofline"] = bounds(level)
    run = {
        "format": report.FORMAT,
        "machine": machine(),
        "server": connection["address"],
        **about,
        "levels": levels,
        "knee": numbers.knee(levels)["load"]["title"],
    }
    console = Console()
    report.print_levels(console, run)
    if earlier is not None:
        report.print_comparison(console, numbers.compare(run, earlier), compare or Path())
    console.print("  ".join(map(str, report.write(out, run))))
    if not any(level["answered"] for level in levels):
        raise SystemExit(1)


def _read_run(path: Path, version: int) -> dict[str, Any]:
    """The bench.json of an earlier run. Raises: InvalidRequest."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != version:
        raise InvalidRequest(f"--compare: {path} is not a bench.json of this version")
    return content


def _roofline(name: str | None, gpu: str | None) -> Callable[[dict[str, Any]], dict[str, float]] | None:
    """A function that computes the roofline of a level; None without --roofline."""
    if name is None:
        return None
    from videollama_benchmarks.load import roofline
    from videollama_converters.gpus import GPUS
    from videollama_core.checkpoint.variants import VARIANTS

    gpu_name = gpu or roofline.gpu_here()
    if name not in VARIANTS:
        raise InvalidRequest(f"--roofline: {name} is not a published checkpoint; they are {', '.join(VARIANTS)}")
    if gpu_name not in GPUS:
        raise InvalidRequest(f"--gpu: {gpu_name or 'this machine has no known GPU'}; expected one of {', '.join(GPUS)}")
    return lambda level: roofline.bound(name, str(gpu_name), level)
