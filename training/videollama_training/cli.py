"""`vl2 train`."""

import logging
from pathlib import Path
from typing import Any

import click

_EPILOG = """Examples:

\b
  vl2 train data.json --checkpoint VideoLLaMA2.1-7B-16F --out build/mine
  vl2 train captions.json --checkpoint BASE_MODEL_FOLDER --tune connector --out build/pretrained
  torchrun --nproc-per-node 8 -m videollama_client train data.json --checkpoint DIR --out build/mine --bf16 \\
      --deepspeed training/configs/zero3.json
"""


@click.command(epilog=_EPILOG)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Folder to start from.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run, such as build/NAME.")
@click.option(
    "--media-folder",
    type=click.Path(path_type=Path),
    help="What media paths are relative to; default: the JSON's folder.",
)
@click.option("--tower", type=click.Path(path_type=Path), help="Folder of the vision tower, where it is not near.")
@click.option("--base", type=click.Path(path_type=Path), help="Folder of the base language model, likewise.")
@click.option(
    "--tune",
    type=click.Choice(("connector", "audio", "full", "lora", "qlora")),
    default="full",
    show_default=True,
    help="connector: pretraining, writes a Base folder; audio: the audio projector alone; full: language model and connector, writes a chat checkpoint; "
    "lora, qlora: adapters and connector.",
)
@click.option("--tune-tower", is_flag=True, help="Train the vision tower too.")
@click.option("--tune-audio-tower", is_flag=True, help="Train the audio tower too, with --tune audio or full.")
@click.option("--plain/--chat", default=None, help="Captions without chat template; default: with --tune connector.")
@click.option("--epochs", default=1.0, show_default=True)
@click.option("--max-steps", default=-1, help="Steps instead of epochs.")
@click.option("--learning-rate", type=float, help="Default: 1e-3 for connector and audio, else 2e-5.")
@click.option("--batch-size", default=8, show_default=True, help="Media per device and step.")
@click.option("--group-by-length", is_flag=True, help="Rows with as many media tokens share a batch: less padding.")
@click.option("--questions-per-media", default=8, show_default=True, help="Samples about one media that share a row.")
@click.option("--accumulate", default=1, show_default=True, help="Steps whose gradients are added up.")
@click.option("--warmup", default=0.03, show_default=True, help="Share of the steps.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--beta2", default=0.999, show_default=True, help="Of AdamW.")
@click.option("--max-tokens", default=2048, show_default=True, help="Longer samples are bad samples.")
@click.option("--pad-to-square", is_flag=True, help="Pad pictures to a square, as the reference's fine-tuning does.")
@click.option("--lora-rank", default=128, show_default=True)
@click.option("--lora-alpha", default=256, show_default=True)
@click.option("--lora-dropout", default=0.05, show_default=True)
@click.option("--skip-bad", is_flag=True, help="Leave out bad samples; they are listed in OUT/bad_samples.jsonl.")
@click.option("--resume", is_flag=True, help="Go on where the run in OUT stopped.")
@click.option("--seed", default=0, show_default=True)
@click.option("--bf16", is_flag=True, help="Mixed precision.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a third more time.")
@click.option("--workers", default=0, show_default=True, help="Processes that decode media.")
@click.option("--save-steps", default=500, show_default=True)
@click.option("--log-steps", default=10, show_default=True)
@click.option(
    "--deepspeed", type=click.Path(path_type=Path), help="DeepSpeed config, such as training/configs/zero3.json."
)
@click.option("--fsdp", type=click.Path(path_type=Path), help="FSDP config, such as training/configs/fsdp.json.")
def train(data: tuple[Path, ...], **options: Any) -> None:
    """Train a checkpoint on DATA, JSON lists of samples in the reference's format.

    Writes OUT/checkpoint in a published layout, which `vl2 convert` takes, and OUT/loss.png.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises to install what downloads kernels
    from videollama_training.train import TrainingOptions
    from videollama_training.train import train as run  # torch takes seconds to import; --help does not wait for it

    result = run(TrainingOptions(data=data, **options))
    if result.skipped:
        click.echo(f"{result.skipped} bad samples were left out: {options['out']}/bad_samples.jsonl", err=True)
    last = f", last loss {result.losses[-1]['loss']:.4f}" if result.losses else ""
    click.echo(
        f"{result.checkpoint} is ready after {result.steps} steps{last}: vl2 convert {result.checkpoint} --out ..."
    )
