"""The command `vl2 eval`."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from videollama_benchmarks.judge_prompts import OWN, OWN_WORDING, JudgePrompt, read_prompts
from videollama_benchmarks.tasks import audio, choices, hallucination, judged, shapes, videomme
from videollama_benchmarks.tasks.items import Task
from videollama_client.cli.connection_options import connection_options
from videollama_client.request_state import checked_seconds
from videollama_core.protocol.messages import SamplingOptions

TASKS: dict[str, Task] = {
    task.name: task for module in (shapes, choices, videomme, hallucination, judged, audio) for task in module.TASKS
}
_LIST = "\n".join(f"  {task.name:20}{task.title}{'; needs a judge' if task.judge else ''}" for task in TASKS.values())
_COUNT = click.IntRange(min=1)
_EPILOG = f"\b\nBenchmarks:\n{_LIST}\n\nExample: vl2 eval mvbench /data/MVBench --out build/eval/mvbench"


@click.command(epilog=_EPILOG)
@click.argument("task", type=click.Choice(list(TASKS)), metavar="BENCHMARK")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Write the answers, result.json and result.png to this folder.",
)
@connection_options
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Run this checkpoint in the command's own process instead of asking a server.",
)
@click.option(
    "--tower",
    type=click.Path(path_type=Path),
    help="Use the vision tower of this folder for --checkpoint, if none is next to the checkpoint.",
)
@click.option("--concurrency", type=_COUNT, default=8, show_default=True, help="Send this many concurrent requests.")
@click.option("--limit", type=_COUNT, help="Evaluate only this many items, the first of the benchmark.")
@click.option(
    "--max-new-tokens", type=_COUNT, help="Limit each answer to this many tokens; the default depends on the benchmark."
)
@click.option("--timeout", default=600.0, show_default=True, help="Wait at most this many seconds for each answer.")
@click.option(
    "--order",
    type=click.Choice(("true", "shuffled", "reversed")),
    default="true",
    show_default=True,
    help="Give the model the frames in this order, to measure how much answers depend on time.",
)
@click.option(
    "--num-frames",
    type=_COUNT,
    help="Give num_frames of the served checkpoint's config.json; --order and videomme-subtitles need it.",
)
@click.option(
    "--without-audio",
    is_flag=True,
    help="Send videos without their audio track, to measure how much answers depend on it.",
)
@click.option(
    "--vcd-alpha", type=float, help="Use visual contrastive decoding (VCD) with this weight; the paper uses 1."
)
@click.option(
    "--vcd-beta", type=float, help="VCD: keep tokens whose probability is at least this fraction of the highest."
)
@click.option("--vcd-noise-step", type=int, help="VCD: add the noise of this diffusion step.")
@click.option(
    "--judge-url", help="Use the judge at this OpenAI-compatible endpoint; its API key is read from JUDGE_API_KEY."
)
@click.option("--judge-model", help="Use the model of this name as judge.")
@click.option(
    "--judge-concurrency",
    type=_COUNT,
    default=4,
    show_default=True,
    help="Send the judge this many concurrent requests.",
)
@click.option(
    "--judge-prompts",
    type=click.Path(path_type=Path),
    help="Read the judge's prompts from this JSON file (docs/evaluation.md); the default is this project's own wording.",
)
def evaluate(
    task: str,
    folder: Path,
    out: Path,
    connection: dict[str, Any],
    checkpoint: Path | None,
    tower: Path | None,
    concurrency: int,
    limit: int | None,
    max_new_tokens: int | None,
    timeout: float,
    order: str,
    num_frames: int | None,
    without_audio: bool,
    vcd_alpha: float | None,
    vcd_beta: float | None,
    vcd_noise_step: int | None,
    judge_url: str | None,
    judge_model: str | None,
    judge_concurrency: int,
    judge_prompts: Path | None,
) -> None:
    """Evaluate a server on BENCHMARK, whose published files are in FOLDER, and report its scores.

    An interrupted run resumes where it stopped; failed requests are sent again.
    """
    from videollama_benchmarks import report, run, sources
    from videollama_benchmarks.judge import Judge
    from videollama_client import Client

    benchmark = TASKS[task]
    if benchmark.judge and not (judge_url and judge_model):
        raise click.UsageError(f"{task} is scored by a judge: give --judge-url and --judge-model")
    prompts = _judge_prompts(task, judge_prompts)
    frame_count = _num_frames(checkpoint, tower, num_frames) if benchmark.counts_frames or order != "true" else 0
    items = (benchmark.load(folder, frame_count) if benchmark.counts_frames else benchmark.load(folder))[:limit]
    if without_audio:
        items = [replace(item, kind="video") for item in items if item.kind == "video+audio"]
    run.check_names(items)
    frames = sources.FrameOrder(order, frame_count) if order != "true" else None
    tokens = max_new_tokens or benchmark.max_new_tokens
    about = {"task": task, "order": order, "without_audio": without_audio, "max_new_tokens": tokens}
    if frame_count:
        about["num_frames"] = frame_count
    contrast: dict[str, Any] = {"vcd_alpha": vcd_alpha, "vcd_beta": vcd_beta, "vcd_noise_step": vcd_noise_step}
    contrast = {name: value for name, value in contrast.items() if value is not None}
    about |= contrast
    key = dict(about)
    about["from"] = str(checkpoint or connection["address"])
    SamplingOptions(max_new_tokens=tokens, **contrast)  # refused here, and not once per item
    checked_seconds(timeout, "--timeout")
    answers = run.Journal(out / "answers.jsonl", key)
    with Client(**connection) as client:
        if checkpoint:
            answerer, concurrency = sources.in_process(checkpoint, tower, tokens, frames, **contrast), 1
        else:
            client.wait_until_ready(10.0)
            answerer = sources.service(client, tokens, timeout, frames, **contrast)
        outcome = run.ask_all(benchmark, items, answerer, answers, concurrency)
    if benchmark.judge:
        about |= {"judge": judge_model, "judge_prompts": str(judge_prompts or OWN_WORDING)}
        judge = Judge(str(judge_url), str(judge_model), prompts, os.environ.get("JUDGE_API_KEY", ""))
        prompts_hash = hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]
        journal = run.Journal(out / "judged.jsonl", {**key, "judge": judge_model, "judge_prompts": prompts_hash})
        outcome = run.judge_all(benchmark, outcome, answers, judge, journal, judge_concurrency)
    summary = report.write_report(out, about, outcome, benchmark.measure)
    click.echo(report.table(summary))
    if benchmark.judge and not judge_prompts:
        click.echo(f"Judge prompts: {OWN_WORDING} (--judge-prompts).")
    if benchmark.export:
        click.echo(f"file for external scoring: {benchmark.export(outcome.results, out)}")
    for name, reason in list(outcome.failed.items())[:5]:
        click.echo(f"no answer to {name}: {reason}", err=True)
    if outcome.failed:
        click.echo(f"{len(outcome.failed)} of {len(items)} items failed; run the command again to retry them", err=True)
        raise SystemExit(1)
    click.echo(f"{out}/result.json, {out}/result.png")


def _judge_prompts(task: str, path: Path | None) -> dict[str, JudgePrompt]:
    own = OWN.get(task, {})
    if path and not own:
        raise click.UsageError(f"{task} is scored without a judge: leave out --judge-prompts")
    return read_prompts(path, task, own) if path else own


def _num_frames(checkpoint: Path | None, tower: Path | None, named: int | None) -> int:
    if named:
        return named
    if not checkpoint:
        raise click.UsageError("give --num-frames: num_frames in the config.json of the served checkpoint")
    from videollama_core.checkpoint.read_config import read_model_config

    return read_model_config(checkpoint, tower).num_frames
