"""`vl2 convert`."""

import json
from functools import partial
from pathlib import Path

import click

from videollama_converters.engine_options import MEDIA_TOKEN_MEMORIES, EngineOptions
from videollama_converters.gpus import GPUS
from videollama_converters.steps.progress import ProgressBar
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_converters.tensorrt_llm.support import KV_DTYPES
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.engines.table import ENCODER_ENGINES, LANGUAGE_ENGINES
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError

_DEFAULTS, _RECIPE = EngineOptions(), Recipe()


@click.command(
    epilog="Examples: vl2 convert DAMO-NLP-SG/VideoLLaMA2.1-7B-16F --out build/2.1-7b; vl2 convert ./folder --out build/mine"
)
@click.argument("checkpoint")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write this folder, such as build/NAME.")
@click.option("--revision", help="Take this branch, tag or commit of CHECKPOINT on the hub; the default is main.")
@click.option(
    "--tower", help="Take the vision tower from this folder or id on the hub, where it is not near the checkpoint."
)
@click.option(
    "--base", help="Take the base language model of a Base folder or an adapter from this folder or id on the hub."
)
@click.option(
    "--engine",
    type=click.Choice(list(ENCODER_ENGINES)),
    default=_DEFAULTS.engine,
    show_default=True,
    help="Run the encoders on this engine.",
)
@click.option(
    "--llm-engine",
    type=click.Choice(list(LANGUAGE_ENGINES)),
    help="Run the language model on this engine, where --engine leaves a choice; the default is the same engine, and torch beside tensorrt-rtx.",
)
@click.option("--dtype", help="Compute in this type; the default is float32 on onnx and bfloat16 on the others.")
@click.option(
    "--max-seq-len",
    type=int,
    help="Limit prompt and answer to this many positions; the default is the checkpoint's own number, on TensorRT 4096.",
)
@click.option(
    "--slots",
    type=int,
    help="Let the language model answer this many concurrent requests; the default is 8 on a CPU and 16 on a GPU.",
)
@click.option(
    "--quantize",
    type=click.Choice([name for engine in LANGUAGE_ENGINES.values() for name in engine.quantizations]),
    help="Quantize the language model's weights: int8 on onnx, the others on TensorRT-LLM (fp8 and int8_sq: the activations, too).",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help='With --quantize on TensorRT-LLM: choose the scales by the texts of train.jsonl in this folder, {"text": ...} a line.',
)
@click.option(
    "--fp8-tower",
    multiple=True,
    type=click.Path(path_type=Path),
    help="TensorRT: run the vision tower's layers in fp8, scaled by this video or picture. Repeat it for more.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(list(KV_DTYPES)),
    default=_RECIPE.kv_dtype,
    show_default=True,
    help="TensorRT-LLM: store the KV cache in this type; auto is the model's own.",
)
@click.option(
    "--tp",
    default=_RECIPE.tp,
    show_default=True,
    help="TensorRT-LLM: share each layer among this many GPUs (tensor parallelism).",
)
@click.option(
    "--pp",
    default=_RECIPE.pp,
    show_default=True,
    help="TensorRT-LLM: share the layers among this many GPUs (pipeline parallelism).",
)
@click.option(
    "--ep",
    default=_RECIPE.ep,
    show_default=True,
    help="TensorRT-LLM: share the experts among this many groups of the --tp GPUs (expert parallelism).",
)
@click.option(
    "--max-batch-size",
    default=_RECIPE.max_batch_size,
    show_default=True,
    help="TensorRT-LLM: answer at most this many concurrent requests.",
)
@click.option(
    "--gpu",
    type=click.Choice(list(GPUS)),
    default=_RECIPE.gpu,
    show_default=True,
    help="TensorRT-LLM: build for this GPU.",
)
@click.option(
    "--media-token-memory",
    type=click.Choice(list(MEDIA_TOKEN_MEMORIES)),
    default=_DEFAULTS.media_token_memory,
    show_default=True,
    help="TensorRT: keep media tokens in this memory between encoder and language model; gpu saves two copies of about 10 MB.",
)
@click.option("--dry-run", is_flag=True, help="TensorRT: print every command and setting, and write nothing.")
def convert(
    checkpoint: str,
    out: Path,
    revision: str | None,
    tower: str | None,
    base: str | None,
    engine: str,
    llm_engine: str | None,
    dtype: str | None,
    max_seq_len: int | None,
    slots: int | None,
    quantize: str | None,
    calibration: Path | None,
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
    """Convert CHECKPOINT, a VideoLLaMA 2 folder or its id on the Hugging Face hub, into a folder that `vl2 serve` takes.

    What is named by an id is downloaded into the hub's cache (HF_HOME), with the tower and base model that it names; a path
    that exists is taken first. A second run downloads and makes only what is missing or no longer valid.
    """
    # torch takes seconds to import; --help does not wait for it.
    from videollama_converters.convert import check_before_download
    from videollama_converters.convert import convert as run
    from videollama_converters.locate import locate

    try:
        texts = str(calibration or "")
        positions = max_seq_len or _RECIPE.max_seq_len
        runs_llm = llm_engine or ENCODER_ENGINES[engine].language_engines[0]
        ours = "" if LANGUAGE_ENGINES[runs_llm].is_backend else quantize or ""
        theirs = "" if ours else quantize or ""
        recipe = Recipe(_RECIPE.dtype, theirs, kv_dtype, tp, pp, ep, max_batch_size, positions, gpu, texts)
        options = EngineOptions(
            engine,
            dtype or ENCODER_ENGINES[engine].dtypes[0],
            max_seq_len,
            slots,
            recipe,
            media_token_memory,
            fp8_tower,
            llm_engine or "",
            ours,
        )
        progress = ProgressBar()
        look = partial(check_before_download, tower, options)
        found = locate(checkpoint, tower, base, revision, progress, download=not dry_run, first_look=look)
        if dry_run:
            from videollama_converters.dry_run import describe

            click.echo(describe(found.checkpoint, out, found.tower, found.base, options))
            return
        run(found.checkpoint, out, found.tower, found.base, progress, options, found.origin)
    except VideoLlamaError:
        click.echo("", err=True)
        raise
    click.echo(f"{out} is ready: vl2 serve {out}")


@click.command(epilog="Example: vl2 plan --checkpoint VideoLLaMA2-72B")
@click.option("--checkpoint", help="Plan for this published checkpoint only; the default is all eleven.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def plan(checkpoint: str | None, as_json: bool) -> None:
    """Tell which GPUs each published checkpoint needs on TensorRT-LLM, and how many concurrent requests they serve.

    Arithmetic from published shapes; nothing was measured.
    """
    from videollama_converters.plan import as_dicts, as_table, make_plan

    rows = [row for row in make_plan() if checkpoint in (None, row.checkpoint)]
    if not rows:
        raise InvalidRequest(f"{checkpoint!r} is not a published checkpoint; they are {', '.join(VARIANTS)}")
    click.echo(json.dumps(as_dicts(rows), indent=1) if as_json else as_table(rows))
