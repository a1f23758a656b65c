"""`vl2 convert`."""

import json
from pathlib import Path

import click

from videollama_converters.engine_options import MEDIA_TOKEN_MEMORIES, EngineOptions
from videollama_converters.gpus import GPUS
from videollama_converters.progress import ProgressBar
from videollama_converters.tensorrt_llm import Recipe
from videollama_converters.tensorrt_llm_support import KV_DTYPES, QUANTIZATIONS
from videollama_core.checkpoint.variants import VARIANTS
from videollama_core.engines.table import ENCODER_ENGINES, LANGUAGE_ENGINES
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError


@click.command(
    epilog="Examples: vl2 convert DAMO-NLP-SG/VideoLLaMA2.1-7B-16F --out build/2.1-7b; vl2 convert ./folder --out build/mine"
)
@click.argument("checkpoint")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write, such as build/NAME.")
@click.option("--revision", help="Branch, tag or commit of CHECKPOINT on the hub; default: main.")
@click.option("--tower", help="Vision tower, where it is not near the checkpoint: a folder, or its id on the hub.")
@click.option("--base", help="Base language model, for Base folders and adapters: a folder, or its id on the hub.")
@click.option(
    "--engine", type=click.Choice(list(ENCODER_ENGINES)), default="onnx", show_default=True, help="What runs it."
)
@click.option(
    "--llm-engine",
    type=click.Choice(list(LANGUAGE_ENGINES)),
    help="What runs the language model, where --engine leaves a choice; default: the engine's own, torch with tensorrt-rtx.",
)
@click.option("--dtype", help="In which the engine computes; onnx float32, the others bfloat16 by default.")
@click.option(
    "--max-seq-len", type=int, help="Positions of prompt and answer; default: the checkpoint's own, 4096 on TensorRT."
)
@click.option("--slots", type=int, help="Questions that the language model answers at a time; 8 on a CPU, 16 on a GPU.")
@click.option("--quantize", type=click.Choice(list(QUANTIZATIONS)), help="TensorRT-LLM: weights (and activations).")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help='With --quantize: folder with train.jsonl, {"text": ...} a line; the scales are chosen by these texts.',
)
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
    from videollama_converters.convert import convert as run
    from videollama_converters.locate import locate

    try:
        texts = str(calibration or "")
        recipe = Recipe(
            "float16", quantize or "", kv_dtype, tp, pp, ep, max_batch_size, max_seq_len or 4096, gpu, texts
        )
        options = EngineOptions(
            engine,
            dtype or ENCODER_ENGINES[engine].dtypes[0],
            max_seq_len,
            slots,
            recipe,
            media_token_memory,
            fp8_tower,
            llm_engine or "",
        )
        progress = ProgressBar()
        found = locate(checkpoint, tower, base, revision, progress, download=not dry_run)
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
