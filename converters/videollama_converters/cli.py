"""The commands `vl2 convert` and `vl2 plan`."""

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
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write to this folder, such as build/NAME.")
@click.option("--revision", help="Use this branch, tag or commit of CHECKPOINT on the hub; the default is main.")
@click.option("--tower", help="Use the vision tower of this folder or hub id, if none is next to the checkpoint.")
@click.option("--base", help="Use the language model of this folder or hub id as base of a Base folder or an adapter.")
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
    help="Run the language model on this engine, where --engine leaves a choice; the default is the same engine, or torch with tensorrt-rtx.",
)
@click.option(
    "--dtype", help="Compute in this data type; the default is float32 on onnx and bfloat16 on the other engines."
)
@click.option(
    "--max-seq-len",
    type=int,
    help="Limit prompt and answer together to this many positions; the default is the checkpoint's own limit, or 4096 on TensorRT.",
)
@click.option(
    "--slots",
    type=int,
    help="Let the language model answer up to this many concurrent requests; the default is 8 on a CPU and 16 on a GPU.",
)
@click.option(
    "--quantize",
    type=click.Choice([name for engine in LANGUAGE_ENGINES.values() for name in engine.quantizations]),
    help="Quantize the language model's weights: int8 on onnx, the others on TensorRT-LLM (fp8 and int8_sq also quantize activations).",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help='With --quantize on TensorRT-LLM: calibrate on the texts of train.jsonl in this folder, one {"text": ...} per line.',
)
@click.option(
    "--fp8-tower",
    multiple=True,
    type=click.Path(path_type=Path),
    help="TensorRT: run the vision tower's linear layers in fp8, calibrated on this video or image. Repeat the option for more.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(list(KV_DTYPES)),
    default=_RECIPE.kv_dtype,
    show_default=True,
    help="TensorRT-LLM: store the KV cache in this data type; auto is the model's own.",
)
@click.option(
    "--tp",
    default=_RECIPE.tp,
    show_default=True,
    help="TensorRT-LLM: split each layer across this many GPUs (tensor parallelism).",
)
@click.option(
    "--pp",
    default=_RECIPE.pp,
    show_default=True,
    help="TensorRT-LLM: distribute the layers over this many GPUs (pipeline parallelism).",
)
@click.option(
    "--ep",
    default=_RECIPE.ep,
    show_default=True,
    help="TensorRT-LLM: distribute the experts over this many groups of the --tp GPUs (expert parallelism).",
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
    help="TensorRT: pass media tokens from the encoder to the language model in this memory; gpu saves two copies of about 10 MB.",
)
@click.option("--dry-run", is_flag=True, help="TensorRT: print every command and setting without writing anything.")
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
    """Convert CHECKPOINT, a VideoLLaMA 2 folder or its id on the Hugging Face hub, into a folder for `vl2 serve`.

    A hub id is downloaded into the hub's cache (HF_HOME), with the tower and base model that its config names; an existing
    path takes precedence. A second run downloads and converts only what is missing or no longer valid.
    """
    # Imported late: torch takes seconds to import, and --help must not wait for it.
    from videollama_converters.convert import check_before_download
    from videollama_converters.convert import convert as run
    from videollama_converters.locate import locate

    try:
        texts = str(calibration or "")
        positions = _RECIPE.max_seq_len if max_seq_len is None else max_seq_len
        language_engine = llm_engine or ENCODER_ENGINES[engine].language_engines[0]
        own_quantization = "" if LANGUAGE_ENGINES[language_engine].is_backend else quantize or ""
        recipe_quantization = "" if own_quantization else quantize or ""
        recipe = Recipe(_RECIPE.dtype, recipe_quantization, kv_dtype, tp, pp, ep, max_batch_size, positions, gpu, texts)
        options = EngineOptions(
            engine,
            ENCODER_ENGINES[engine].dtypes[0] if dtype is None else dtype,
            max_seq_len,
            slots,
            recipe,
            media_token_memory,
            fp8_tower,
            llm_engine or "",
            own_quantization,
        )
        progress = ProgressBar()
        check_early = partial(check_before_download, tower, options)
        located = locate(checkpoint, tower, base, revision, progress, download=not dry_run, check_early=check_early)
        if dry_run:
            from videollama_converters.dry_run import describe

            click.echo(describe(located.checkpoint, out, located.tower, located.base, options))
            return
        run(located.checkpoint, out, located.tower, located.base, progress, options, located.origin)
    except VideoLlamaError:
        click.echo("", err=True)
        raise
    click.echo(f"{out} is ready: vl2 serve {out}")


@click.command(epilog="Example: vl2 plan --checkpoint VideoLLaMA2-72B")
@click.option("--checkpoint", help="Plan only for this published checkpoint; the default is all eleven.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def plan(checkpoint: str | None, as_json: bool) -> None:
    """Show which GPUs each published checkpoint needs on TensorRT-LLM, and how many concurrent requests they serve.

    The figures are computed from published shapes, not measured.
    """
    from videollama_converters.plan import as_dicts, as_table, make_plan

    rows = [row for row in make_plan() if checkpoint in (None, row.checkpoint)]
    if not rows:
        raise InvalidRequest(f"{checkpoint!r} is not a published checkpoint; they are {', '.join(VARIANTS)}")
    click.echo(json.dumps(as_dicts(rows), indent=1) if as_json else as_table(rows))
