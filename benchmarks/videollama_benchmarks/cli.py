"""`vl2 eval`."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import click

from videollama_benchmarks import choices, hallucination, judged, shapes, sound, videomme
from videollama_benchmarks.items import Task
from videollama_benchmarks.judge_prompts import OWN, OWN_WORDING, JudgePrompt, read_prompts

TASKS: dict[str, Task] = {
    task.name: task for module in (shapes, choices, videomme, hallucination, judged, sound) for task in module.TASKS
}
_LIST = "\n".join(f"  {task.name:20}{task.title}{'; needs a judge' if task.judge else ''}" for task in TASKS.values())
_EPILOG = f"\b\nBenchmarks:\n{_LIST}\n\nExample: vl2 eval mvbench /data/MVBench --out build/eval/mvbench"


@click.command(epilog=_EPILOG)
@click.argument("task", type=click.Choice(list(TASKS)), metavar="BENCHMARK")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for answers, result.json, result.png."
)
@click.option("--url", default="localhost:8001", show_default=True, help="host:port of the server's gRPC port.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Answer in this process instead of asking a server."
)
@click.option("--tower", type=click.Path(path_type=Path), help="Vision tower of --checkpoint, where it is not near.")
@click.option("--concurrency", default=8, show_default=True, help="Questions at a time.")
@click.option("--limit", type=int, help="Only the first so many items.")
@click.option("--max-new-tokens", type=int, help="Default: what the benchmark needs.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds for one answer.")
@click.option(
    "--order",
    type=click.Choice(("true", "shuffled", "reversed")),
    default="true",
    show_default=True,
    help="Order in which the model sees the frames: what do answers owe to time?",
)
@click.option(
    "--num-frames",
    type=int,
    help="num_frames of the checkpoint's config.json, where a server is asked: for --order and videomme-subtitles.",
)
@click.option("--without-audio", is_flag=True, help="Ask about videos without their sound: what do answers owe to it?")
@click.option("--vcd-alpha", type=float, help="Ask with visual contrastive decoding: its weight, 1 in the paper.")
@click.option("--vcd-beta", type=float, help="Its plausibility cutoff.")
@click.option("--vcd-noise-step", type=int, help="Its steps of noise.")
@click.option("--judge-url", help="OpenAI-compatible endpoint of the judge; its key is read from JUDGE_API_KEY.")
@click.option("--judge-model", help="Name of the judge's model.")
@click.option("--judge-concurrency", default=4, show_default=True)
@click.option(
    "--judge-prompts",
    type=click.Path(path_type=Path),
    help="JSON file with the judge's prompts (docs/evaluation.md); default: our own wording.",
)
def evaluate(
    task: str,
    folder: Path,
    out: Path,
    url: str,
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
    """Ask a server everything of BENCHMARK, whose published files lie in FOLDER, and add up how often it is right.

    A run that was stopped goes on where it was; answers that failed are asked again.
    """
    from videollama_benchmarks import report, run, sources
    from videollama_benchmarks.judge import Judge
    from videollama_client import Client

    chosen = TASKS[task]
    if chosen.judge and not (judge_url and judge_model):
        raise click.UsageError(f"{task} is read by a judge: name --judge-url and --judge-model")
    prompts = _judge_prompts(task, judge_prompts)
    looked_at = _num_frames(checkpoint, tower, num_frames) if chosen.counts_frames or order != "true" else 0
    items = (chosen.load(folder, looked_at) if chosen.counts_frames else chosen.load(folder))[:limit]
    if without_audio:
        items = [replace(item, kind="video") for item in items if item.kind == "video+audio"]
    run.check_names(items)
    frames = sources.FrameOrder(order, looked_at) if order != "true" else None
    tokens = max_new_tokens or chosen.max_new_tokens
    about = {"task": task, "order": order, "without_audio": without_audio, "max_new_tokens": tokens}
    if looked_at:
        about["num_frames"] = looked_at
    contrast = {"vcd_alpha": vcd_alpha, "vcd_beta": vcd_beta, "vcd_noise_step": vcd_noise_step}
    contrast = {name: value for name, value in contrast.items() if value is not None}
    about |= contrast
    key = dict(about)
    about["from"] = str(checkpoint or url)
    answers = run.Journal(out / "answers.jsonl", key)
    with Client(url) as client:
        if checkpoint:
            answerer, concurrency = sources.in_process(checkpoint, tower, tokens, frames, **contrast), 1
        else:
            client.wait_until_ready(10.0)
            answerer = sources.service(client, tokens, timeout, frames, **contrast)
        outcome = run.ask_all(chosen, items, answerer, answers, concurrency)
    if chosen.judge:
        about |= {"judge": judge_model, "judge_prompts": str(judge_prompts or OWN_WORDING)}
        judge = Judge(str(judge_url), str(judge_model), prompts, os.environ.get("JUDGE_API_KEY", ""))
        worded = hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]
        journal = run.Journal(out / "judged.jsonl", {**key, "judge": judge_model, "judge_prompts": worded})
        outcome = run.judge_all(chosen, outcome, answers, judge, journal, judge_concurrency)
    summary = report.write_report(out, about, outcome, chosen.measure)
    click.echo(report.table(summary))
    if chosen.judge and not judge_prompts:
        click.echo(f"The judge was asked in {OWN_WORDING} (--judge-prompts).")
    if chosen.export:
        click.echo(f"for scoring elsewhere: {chosen.export(outcome.results, out)}")
    for name, reason in list(outcome.failed.items())[:5]:
        click.echo(f"no answer to {name}: {reason}", err=True)
    if outcome.failed:
        click.echo(f"{len(outcome.failed)} of {len(items)} items failed; run again to try them again", err=True)
        raise SystemExit(1)
    click.echo(f"{out}/result.json, {out}/result.png")


def _judge_prompts(task: str, path: Path | None) -> dict[str, JudgePrompt]:
    own = OWN.get(task, {})
    if path and not own:
        raise click.UsageError(f"{task} is read without a judge: leave out --judge-prompts")
    return read_prompts(path, task, own) if path else own


def _num_frames(checkpoint: Path | None, tower: Path | None, named: int | None) -> int:
    if named:
        return named
    if not checkpoint:
        raise click.UsageError("name --num-frames: num_frames in the config.json of the checkpoint that is served")
    from videollama_core.checkpoint.read_config import read_model_config

    return read_model_config(checkpoint, tower).num_frames
