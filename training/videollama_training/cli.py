"""The command `vl2 train`."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from videollama_training.options import LORA_BIASES, TUNED, TrainingOptions

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainingOptions)}
_EPILOG = """Examples:

\b
  vl2 train data.json --checkpoint VideoLLaMA2.1-7B-16F --out build/mine
  vl2 train captions.json --base Qwen2-7B-Instruct --tower siglip-so400m-patch14-384 \\
      --connector stc_connector_v35 --num-frames 16 --tune connector --out build/pretrained
  vl2 train sounds.json --checkpoint VideoLLaMA2.1-7B-16F --audio-tower BEATs_iter3_plus_AS2M.pt \\
      --tune audio --out build/audio
  torchrun --nproc-per-node 8 -m videollama_client train data.json --checkpoint DIR --out build/mine --bf16 \\
      --global-batch-size 128 --deepspeed training/configs/zero3.json

The reference's recipes are in training/recipes.
"""


@click.command(epilog=_EPILOG)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Write the run to this folder, such as build/NAME."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Start from this checkpoint folder.")
@click.option(
    "--layout",
    help="Read DATA as the folder of a published data set: videollava_pt, videollava_sft, custom_sft, audio_stage1, "
    "audio_stage2 or audio_stage3.",
)
@click.option(
    "--media-folder",
    type=click.Path(path_type=Path),
    help="Look for media below this folder; the default is the folder of the JSON file.",
)
@click.option(
    "--connector",
    type=click.Choice(("stc_connector", "stc_connector_v35")),
    help="Start from a plain language model (--base), a vision tower (--tower) and a newly initialized connector of this type.",
)
@click.option("--base", type=click.Path(path_type=Path), help="Use the base language model of this folder.")
@click.option("--tower", type=click.Path(path_type=Path), help="Use the vision tower of this folder.")
@click.option("--num-frames", type=int, help="With --connector: use this many frames per video; the default is 8.")
@click.option(
    "--select-layer", type=int, help="With --connector: use the features of this tower layer; the default is -2."
)
@click.option(
    "--audio-tower",
    type=click.Path(path_type=Path),
    help="Add an audio tower (BEATs' .pt file) and a newly initialized audio projector to a checkpoint without them.",
)
@click.option(
    "--tune",
    type=click.Choice(TUNED),
    default=_DEFAULTS["tune"],
    show_default=True,
    help="Train these parts. connector: the connector (pretraining), writes a Base folder; audio: only the audio projector; full: language model and connector, writes a chat checkpoint; lora, qlora: adapters and connector.",
)
@click.option("--tune-tower", is_flag=True, help="Train the vision tower too.")
@click.option("--tune-audio-tower", is_flag=True, help="With --tune audio or full: train the audio tower too.")
@click.option(
    "--freeze-backbone", is_flag=True, help="With --tune full: train only the head (lm_head) of the language model."
)
@click.option("--freeze-connector", is_flag=True, help="Freeze the connector and the audio projector.")
@click.option(
    "--plain/--chat",
    default=None,
    help="Choose the prompt format. --chat: the conversation in the checkpoint's chat template, with the loss on the answers. --plain: the pretraining format; question and answer without a template, or, for a checkpoint with an audio tower, the template around placeholder and answer. The default is --plain if only a projector is tuned.",
)
@click.option("--epochs", default=_DEFAULTS["epochs"], show_default=True, help="Train for this many epochs.")
@click.option("--max-steps", default=_DEFAULTS["max_steps"], help="Stop after this many steps, regardless of --epochs.")
@click.option(
    "--learning-rate",
    type=float,
    help="Set the learning rate; the default is 1e-3 for --tune connector and audio, and 2e-5 for the others.",
)
@click.option(
    "--connector-learning-rate",
    type=float,
    help="Set a different learning rate for the connector and the audio projector.",
)
@click.option(
    "--batch-size",
    default=_DEFAULTS["batch_size"],
    show_default=True,
    help="Process this many media per process and step.",
)
@click.option(
    "--global-batch-size",
    type=int,
    help="Process this many media per update over all processes, by accumulating gradients as needed.",
)
@click.option(
    "--accumulate",
    default=_DEFAULTS["accumulate"],
    show_default=True,
    help="Accumulate the gradients of this many steps per update.",
)
@click.option(
    "--group-by-length", is_flag=True, help="Batch rows with equal numbers of media tokens, which reduces padding."
)
@click.option(
    "--questions-per-media",
    default=_DEFAULTS["questions_per_media"],
    show_default=True,
    help="Pack at most this many samples about the same media into one row.",
)
@click.option(
    "--warmup",
    default=_DEFAULTS["warmup"],
    show_default=True,
    help="Warm up the learning rate over this share of the steps.",
)
@click.option(
    "--weight-decay",
    default=_DEFAULTS["weight_decay"],
    show_default=True,
    help="Set AdamW's weight decay, which applies only to matrices.",
)
@click.option("--beta2", default=_DEFAULTS["beta2"], show_default=True, help="Set AdamW's beta2.")
@click.option(
    "--max-tokens",
    default=_DEFAULTS["max_tokens"],
    show_default=True,
    help="Truncate the text of a sample to this many tokens; media tokens do not count.",
)
@click.option("--pad-to-square", is_flag=True, help="Pad images to a square, as the reference's fine-tuning does.")
@click.option("--lora-rank", default=_DEFAULTS["lora_rank"], show_default=True, help="Set the rank of the adapters.")
@click.option(
    "--lora-alpha",
    default=_DEFAULTS["lora_alpha"],
    show_default=True,
    help="Set the alpha of the adapters, whose scale is alpha / rank.",
)
@click.option(
    "--lora-dropout", default=_DEFAULTS["lora_dropout"], show_default=True, help="Set the dropout before the adapters."
)
@click.option(
    "--lora-bias",
    type=click.Choice(LORA_BIASES),
    default=_DEFAULTS["lora_bias"],
    show_default=True,
    help="Train these biases of the language model too.",
)
@click.option("--skip-bad", is_flag=True, help="Skip bad samples and list them in OUT/bad_samples.jsonl.")
@click.option("--check-only", is_flag=True, help="Check every list and media file, print a report, and stop.")
@click.option("--resume", is_flag=True, help="Continue the run in OUT from its last saved state.")
@click.option(
    "--seed", default=_DEFAULTS["seed"], show_default=True, help="Seed new weights, the data order and dropout."
)
@click.option("--bf16", is_flag=True, help="Train in bfloat16 mixed precision.")
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Recompute activations in the backward pass: less memory, a third more time.",
)
@click.option(
    "--workers",
    default=_DEFAULTS["workers"],
    show_default=True,
    help="Decode media in this many worker processes; 0 uses the main process.",
)
@click.option(
    "--save-steps", default=_DEFAULTS["save_steps"], show_default=True, help="Save the state every this many steps."
)
@click.option("--save-limit", default=_DEFAULTS["save_limit"], show_default=True, help="Keep this many saved states.")
@click.option(
    "--log-steps", default=_DEFAULTS["log_steps"], show_default=True, help="Log the loss every this many steps."
)
@click.option("--tensorboard", is_flag=True, help="Also log to OUT/tensorboard.")
@click.option(
    "--deepspeed",
    type=click.Path(path_type=Path),
    help="Use this DeepSpeed config, such as training/configs/zero3.json.",
)
@click.option(
    "--fsdp", type=click.Path(path_type=Path), help="Use this FSDP config, such as training/configs/fsdp.json."
)
def train(data: tuple[Path, ...], **options: Any) -> None:
    """Train a checkpoint on DATA, one or more JSON lists of samples in the reference's format.

    Writes OUT/checkpoint in a published layout, which `vl2 convert` reads, and OUT/loss.png.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends a package that downloads kernels
    training_options = TrainingOptions(data=data, **options)
    # Imported late: torch takes seconds to import, and --help must not wait for it.
    from videollama_training import train as training

    if training_options.check_only:
        click.echo(training.check_data(training_options).describe())
        return
    result = training.train(training_options, report=lambda text: click.echo(text, err=True))
    if result.skipped:
        click.echo(f"{result.skipped} bad samples were skipped: {training_options.out}/bad_samples.jsonl", err=True)
    last = f", last loss {result.losses[-1]['loss']:.4f}" if result.losses else ""
    click.echo(
        f"{result.checkpoint} is ready after {result.steps} steps{last}: vl2 convert {result.checkpoint} --out ..."
    )
