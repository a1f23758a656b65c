"""`vl2 convert`."""

import json
import sys
import time
from pathlib import Path

import click

from videollama_converters.engine_options import ENGINES, LLM_ENGINES, MEDIA_TOKEN_MEMORIES, EngineOptions
from videollama_converters.gpus import GPUS
from videollama_converters.tensorrt_llm import KV_DTYPES, QUANTIZATIONS, Recipe
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError


class ProgressBar:
    """One line per step on stderr; a moving bar on a terminal."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._task, self._total, self._count = "", 0, 0

    def start(self, task: str, total: int) -> None:
        self._task, self._total, self._count, self._began = task, max(total, 1), 0, time.monotonic()
        self._draw("")

    def advance(self) -> None:
        self._count = min(self._count + 1, self._total)
        self._draw("")

    def done(self, reused: bool) -> None:
        seconds = time.monotonic() - self._began
        self._count = self._total
        self._draw("still valid" if reused else f"{seconds:.1f} s")
        if not self._moving:
            click.echo(f"{self._task:24} {'still valid' if reused else f'{seconds:.1f} s'}", err=True)
        else:
            click.echo("", err=True)

    def _draw(self, note: str) -> None:
        if self._moving:
            filled = 30 * self._count // self._total
            click.echo(
                f"\r{self._task:24} [{'#' * filled}{'.' * (30 - filled)}] {self._count}/{self._total} {note}",
                nl=False,
                err=True,
            )


@click.command(epilog="Example: vl2 convert VideoLLaMA2.1-7B-16F --out build/2.1-7b --tower siglip-so400m-patch14-384")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write, such as build/NAME.")
@click.option(
    "--tower", type=click.Path(path_type=Path), help="Folder of the vision tower, where it is not near the checkpoint."
)
@click.option(
    "--base", type=click.Path(path_type=Path), help="Folder of the base language model, for Base folders and adapters."
)
@click.option("--engine", type=click.Choice(list(ENGINES)), default="onnx", show_default=True, help="What runs it.")
@click.option(
    "--llm-engine",
    type=click.Choice(list(dict.fromkeys(each for engines in LLM_ENGINES.values() for each in engines))),
    help="What runs the language model, where --engine leaves a choice; default: the engine's own, torch with tensorrt-rtx.",
)
@click.option("--dtype", help="In which the engine computes; onnx float32, the others bfloat16 by default.")
@click.option(
    "--max-seq-len", type=int, help="Positions of prompt and answer; default: the checkpoint's own, 4096 on TensorRT."
)
@click.option("--slots", type=int, help="Questions that the language model answers at a time; 8 on a CPU, 16 on a GPU.")
@click.option("--quantize", type=click.Choice(list(QUANTIZATIONS)), help="TensorRT-LLM: weights (and activations).")
@click.option(
    "--fp8-tower",
    multiple=True,
    type=click.Path(path_type=Path),
    help="TensorRT: the vision tower's layers in fp8, scaled by this video or picture; repeat for more.",
)
@click.option("--kv-dtype", type=click.Choice(list(KV_DTYPES)), default="auto", help="TensorRT-LLM: keys and values.")
@click.option("--tp", default=1, show_default=True, help="TensorRT-LLM: GPUs that share each layer.")
@click.option("--pp", default=1, show_default=True, help="TensorRT-LLM: GPUs that share the layers.")
@click.option("--ep", default=1, show_default=True, help="TensorRT-LLM: groups of those GPUs that share the experts.")
@click.option("--max-batch-size", default=64, show_default=True, help="TensorRT-LLM: questions at a time.")
@click.option(
    "--gpu", type=click.Choice(list(GPUS)), default="H100", show_default=True, help="TensorRT-LLM: built for."
)
@click.option(
    "--media-token-memory",
    type=click.Choice(list(MEDIA_TOKEN_MEMORIES)),
    default="cpu",
    show_default=True,
    help="TensorRT: where media tokens lie between encoder and language model; gpu saves two copies of about 10 MB.",
)
@click.option("--dry-run", is_flag=True, help="TensorRT: print every command and setting; write nothing.")
def convert(
    checkpoint: Path,
    out: Path,
    tower: Path | None,
    base: Path | None,
    engine: str,
    llm_engine: str | None,
    dtype: str | None,
    max_seq_len: int | None,
    slots: int | None,
    quantize: str | None,
    fp8_tower: tuple[Path, ...],
    kv_dtype: str,
    tp: int,
    pp: int,
    ep: int,
    max_batch_size: int,
    gpu: str,
    media_token_memory: str,
    dry_run: bool,
) -> None:
    """Convert CHECKPOINT, a published VideoLLaMA 2 folder, into a folder that `vl2 serve` takes.

    A second run makes only what is missing or no longer valid.
    """
    from videollama_converters.convert import (
        convert as run,
    )  # torch takes seconds to import; --help does not wait for it

    try:
        recipe = Recipe("float16", quantize or "", kv_dtype, tp, pp, ep, max_batch_size, max_seq_len or 4096, gpu)
        options = EngineOptions(
            engine,
            dtype or ENGINES[engine][0],
            max_seq_len,
            slots,
            recipe,
            media_token_memory,
            fp8_tower,
            llm_engine or "",
        )
        if dry_run:
            from videollama_converters.dry_run import describe

            click.echo(describe(checkpoint, out, tower, base, options))
            return
        run(checkpoint, out, tower, base, ProgressBar(), options)
    except VideoLlamaError:
        click.echo("", err=True)
        raise
    click.echo(f"{out} is ready: vl2 serve {out}")


@click.command(epilog="Example: vl2 plan --checkpoint VideoLLaMA2-72B")
@click.option("--checkpoint", help="One of the eleven published ones; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def plan(checkpoint: str | None, as_json: bool) -> None:
    """Which GPUs each published checkpoint needs on TensorRT-LLM, and how many questions they hold at a time.

    Arithmetic from published shapes; nothing was measured.
    """
    from videollama_converters.plan import as_dicts, as_table, make_plan

    rows = [row for row in make_plan() if checkpoint in (None, row.checkpoint)]
    if not rows:
        raise InvalidRequest(f"{checkpoint!r} is not a published checkpoint; they are {', '.join(VARIANTS)}")
    click.echo(json.dumps(as_dicts(rows), indent=1) if as_json else as_table(rows))
