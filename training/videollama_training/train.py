"""Runs a training: reads a checkpoint and samples, and writes a checkpoint in a published layout."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.data.batches import BadSamples, Collator, RowDataset
from videollama_training.data.layouts import MediaReport, check_folder, check_media, find_layout
from videollama_training.data.samples import Sample, read_samples
from videollama_training.loading import Loading
from videollama_training.model import TrainableModel
from videollama_training.options import TrainingOptions
from videollama_training.save import save_checkpoint
from videollama_training.start import open_start

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class TrainingResult:
    checkpoint: Path
    steps: int
    losses: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0


def train(options: TrainingOptions, report: Callable[[str], None] = lambda text: None) -> TrainingResult:
    """Train a checkpoint.

    Args:
        report: called once with a summary of the data, before anything is loaded.
    Raises: BadSample, CheckpointMismatch, InvalidRequest.
    """
    last = _find_state(options)
    media = check_data(options)
    if int(os.environ.get("RANK", "0")) == 0:
        report(media.describe())
    # Imported late: the Trainer takes four seconds to import, and what is wrong with the data is reported before.
    from transformers import set_seed

    from videollama_training.trainer import Curve, VideoTrainer, training_arguments

    arguments = training_arguments(options)
    set_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = open_start(options)
    tokenizer = read_tokenizer(parts.folders.language)
    bad = BadSamples(options.out / "bad_samples.jsonl" if options.skip_bad else None)
    dataset = RowDataset(
        read_all(options, bad),
        tokenizer,
        parts.config,
        plain=options.is_plain,
        questions=options.questions_per_media,
        pad_to_square=options.pad_to_square,
        bad=bad,
        max_tokens=min(options.max_tokens, parts.config.language.max_positions),
    )
    model = prepare_model(parts, tokenizer, options, _loading(options, arguments))
    trainer = VideoTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(parts.config),
        callbacks=[Curve(options.out)],
    )
    trainer.group_by_length = options.group_by_length
    trainer.connector_learning_rate = options.connector_learning_rate
    trainer.train(resume_from_checkpoint=last)
    trainer.accelerator.wait_for_everyone()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        if not options.tune_audio_tower:  # its stored tensors are copied unchanged
            state = {name: tensor for name, tensor in state.items() if not name.startswith("audio.tower.")}
        adapters = getattr(model.decoder, "peft_config", {}).get("default")
        save_checkpoint(state, parts, options.out / "checkpoint", options.tune, options.tune_tower, adapters)
    trainer.accelerator.wait_for_everyone()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    return TrainingResult(options.out / "checkpoint", trainer.state.global_step, losses, bad.count())


def _find_state(options: TrainingOptions) -> str | None:
    if not options.state.is_dir():
        return None
    from transformers.trainer_utils import get_last_checkpoint  # imported late: it imports peft

    last = get_last_checkpoint(str(options.state))
    if last and not options.resume:
        raise InvalidRequest(
            f"{options.out} has a run that stopped at {Path(last).name}; continue it with --resume, or use another --out"
        )
    return last


def lists_of(options: TrainingOptions) -> tuple[Path, ...]:
    """The JSON lists to read; for a published layout, those of its folder. Raises: BadSample, InvalidRequest."""
    if options.layout is None:
        return options.data
    (folder,) = options.data
    layout = find_layout(options.layout)
    check_folder(folder, layout)
    return tuple(folder / name for name in layout.lists)


def check_data(options: TrainingOptions) -> MediaReport:
    """Check every list and media file. Raises: BadSample with the missing files, unless bad samples are skipped."""
    report = check_media(lists_of(options), options.media_folder)
    if report.missing and not options.skip_bad:
        raise BadSample(f"media files are missing; --skip-bad skips their samples\n{report.describe()}")
    return report


def read_all(options: TrainingOptions, bad: BadSamples) -> list[Sample]:
    """Read all samples. Raises: BadSample for the first bad sample, unless bad ones are skipped; and if none is left."""
    with_audio = find_layout(options.layout).with_audio if options.layout else ()
    samples = []
    for path in lists_of(options):
        for sample in read_samples(path, options.media_folder or path.parent):
            if isinstance(sample, BadSample):
                bad.add(sample)
            elif sample.kind == "video" and path.name in with_audio:
                samples.append(replace(sample, kind="video_with_audio"))
            else:
                samples.append(sample)
    if not samples:
        raise BadSample(f"no sample of {', '.join(map(str, options.data))} can be used")
    return samples


def _loading(options: TrainingOptions, arguments: "TrainingArguments") -> Loading:
    """With DeepSpeed, which keeps its own float32 copy split over the processes, the model is bfloat16, as in the reference."""
    half = options.bf16 and options.deepspeed is not None
    shared = options.fsdp is not None or is_deepspeed_zero3_enabled()
    return Loading(arguments.device, torch.bfloat16 if half else torch.float32, shared)


def prepare_model(
    parts: CheckpointParts, tokenizer: Tokenizer, options: TrainingOptions, loading: Loading = Loading()
) -> TrainableModel:
    """Load the model, with exactly the parameters trainable that `options` selects. Raises: CheckpointMismatch, InvalidRequest."""
    _check_audio(parts, options)
    model = TrainableModel(parts, tokenizer.pad_id, loading)
    model.connector.requires_grad_(options.tune != "audio" and not options.freeze_connector)
    model.vision.requires_grad_(options.tune_tower)
    if model.audio is not None:
        model.audio.projector.requires_grad_(not options.freeze_connector)
        model.audio.tower.requires_grad_(options.tune_audio_tower)
    if options.tune == "full":
        model.language_model.requires_grad_(True)
        if options.freeze_backbone:  # all but lm_head, as in the reference
            model.language_model.model.requires_grad_(False)
    elif options.tune in ("lora", "qlora"):
        from videollama_training.adapters import add_adapters  # imported late: peft takes seconds to import

        model.decoder = add_adapters(model.language_model, options)
    return model


def _check_audio(parts: CheckpointParts, options: TrainingOptions) -> None:
    """Raises: InvalidRequest if the layout to be written cannot hold the trained parts."""
    if parts.config.audio is None and (options.tune == "audio" or options.tune_audio_tower):
        raise InvalidRequest(f"{options.checkpoint} has no audio tower to train; add one with --audio-tower BEATS.pt")
    if parts.config.audio is not None and options.tune not in ("audio", "full"):
        raise InvalidRequest(
            f"{options.checkpoint} has an audio tower, and --tune {options.tune} would write a layout without an audio "
            "projector; use --tune audio (only the projector) or --tune full"
        )


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, even if it has only the slow tokenizer's files."""
    with TemporaryDirectory() as complete:  # per process
        copy_tokenizer(folder, Path(complete))
        return Tokenizer(Path(complete))
