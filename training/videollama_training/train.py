"""One training run: a checkpoint and samples in, a checkpoint in a published layout out."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from videollama_core.checkpoint.parts import CheckpointParts, open_checkpoint
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.protocol.errors import BadSample, CheckpointMismatch, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.curve import draw_curve
from videollama_training.data import BadSamples, Collator, LengthGroups, RowDataset
from videollama_training.model import TrainableModel
from videollama_training.samples import Sample, read_samples
from videollama_training.save import save_checkpoint

TUNED = ("connector", "audio", "full", "lora", "qlora")
_DEFAULT_RATES = {
    "connector": 1e-3,
    "audio": 1e-3,
    "full": 2e-5,
    "lora": 2e-5,
    "qlora": 2e-5,
}  # the reference's recipes


@dataclass(frozen=True)
class TrainingOptions:
    """What a run does. Rates, rank and alpha default to the reference's recipes."""

    checkpoint: Path
    data: tuple[Path, ...]
    out: Path
    media_folder: Path | None = None  # None: beside each JSON file
    tower: Path | None = None
    base: Path | None = None
    tune: str = "full"  # connector (pretraining) | audio (its projector alone) | full | lora | qlora
    tune_tower: bool = False  # the reference freezes it
    tune_audio_tower: bool = False  # with audio or full; the reference's later audio stages do
    plain: bool | None = None  # captions without template; None: exactly when the connector alone is tuned
    epochs: float = 1.0
    max_steps: int = -1  # counts instead of epochs when positive
    learning_rate: float | None = None
    batch_size: int = 8  # media per device and step
    group_by_length: bool = False  # rows with as many media tokens share a batch: less padding
    questions_per_media: int = 8  # samples about the same media that share one row
    accumulate: int = 1  # steps whose gradients are added up
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    beta2: float = 0.999  # of AdamW
    max_tokens: int = 2048
    pad_to_square: bool = False  # the reference's fine-tuning does, its inference does not
    lora_rank: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    skip_bad: bool = False
    resume: bool = False
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    workers: int = 0  # processes that decode media
    save_steps: int = 500
    log_steps: int = 10
    deepspeed: Path | None = None
    fsdp: Path | None = None

    def __post_init__(self) -> None:
        if self.tune not in TUNED:
            raise InvalidRequest(f"tune is {self.tune!r}; wanted one of {', '.join(TUNED)}")

    @property
    def is_plain(self) -> bool:
        return self.tune == "connector" if self.plain is None else self.plain

    @property
    def checkpoints(self) -> Path:
        """Where the run keeps its state."""
        return self.out / "state"


@dataclass
class TrainingResult:
    checkpoint: Path
    steps: int
    losses: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0


def train(options: TrainingOptions) -> TrainingResult:
    """Raises: BadSample, CheckpointMismatch, InvalidRequest."""
    last = _find_state(options)
    set_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = open_checkpoint(options.checkpoint, options.tower, options.base)
    tokenizer = read_tokenizer(parts.folders.language)
    bad = BadSamples(options.out / "bad_samples.jsonl" if options.skip_bad else None)
    samples = read_all(options, bad)
    dataset = RowDataset(
        samples,
        tokenizer,
        parts.config,
        plain=options.is_plain,
        questions=options.questions_per_media,
        pad_to_square=options.pad_to_square,
        bad=bad,
        max_tokens=min(options.max_tokens, parts.config.language.max_positions),
    )
    model = prepare_model(parts, tokenizer, options)
    trainer = _Trainer(
        model=model,
        args=_arguments(options, len(dataset)),
        train_dataset=dataset,
        data_collator=Collator(parts.config),
        callbacks=[_Curve(options.out)],
    )
    trainer.group_by_length = options.group_by_length
    trainer.train(resume_from_checkpoint=last)
    trainer.accelerator.wait_for_everyone()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        if not options.tune_audio_tower:  # its tensors are kept as they are stored
            state = {name: tensor for name, tensor in state.items() if not name.startswith("audio.tower.")}
        adapters = getattr(model.decoder, "peft_config", {}).get("default")
        save_checkpoint(state, parts, options.out / "checkpoint", options.tune, options.tune_tower, adapters)
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    return TrainingResult(options.out / "checkpoint", trainer.state.global_step, losses, bad.count())


def _find_state(options: TrainingOptions) -> str | None:
    last = get_last_checkpoint(str(options.checkpoints)) if options.checkpoints.is_dir() else None
    if last and not options.resume:
        raise InvalidRequest(
            f"{options.out} holds a run that stopped at {Path(last).name}; go on with --resume, or name another --out"
        )
    return last


def read_all(options: TrainingOptions, bad: BadSamples) -> list[Sample]:
    """Raises: BadSample for the first bad sample, unless bad ones are skipped; and when none is left."""
    samples = []
    for path in options.data:
        for found in read_samples(path, options.media_folder or path.parent):
            if isinstance(found, BadSample):
                bad.add(found)
            else:
                samples.append(found)
    if not samples:
        raise BadSample(f"no sample of {', '.join(map(str, options.data))} can be used")
    return samples


def prepare_model(parts: CheckpointParts, tokenizer: Tokenizer, options: TrainingOptions) -> TrainableModel:
    """The model with exactly those parameters trainable that `options.tune` names."""
    _check_audio_tower(parts, options)
    model = TrainableModel(parts, tokenizer.pad_id)
    model.connector.requires_grad_(options.tune != "audio")
    model.vision.requires_grad_(options.tune_tower)
    if model.audio is not None:
        model.audio.projector.requires_grad_(True)
        model.audio.tower.requires_grad_(options.tune_audio_tower)
    if options.tune == "full":
        model.decoder.requires_grad_(True)
    elif options.tune in ("lora", "qlora"):
        from videollama_training.adapters import add_adapters  # peft takes seconds to import, and is rarely needed

        model.decoder = add_adapters(
            model.language_model,
            rank=options.lora_rank,
            alpha=options.lora_alpha,
            dropout=options.lora_dropout,
            four_bit=options.tune == "qlora",
        )
    return model


def _check_audio_tower(parts: CheckpointParts, options: TrainingOptions) -> None:
    """Raises: InvalidRequest where the layout that is to be written cannot hold what is to be trained."""
    if parts.config.audio is None and (options.tune == "audio" or options.tune_audio_tower):
        raise InvalidRequest(f"{options.checkpoint} has no audio tower; its ears cannot be trained")
    if parts.config.audio is not None and options.tune not in ("audio", "full"):
        raise InvalidRequest(
            f"{options.checkpoint} hears, and --tune {options.tune} would write a layout without an audio projector; "
            "use --tune audio (the projector alone) or --tune full"
        )


def read_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, even where it has only the slow tokenizer's files."""
    with TemporaryDirectory() as complete:  # one per process
        copy_tokenizer(folder, Path(complete))
        return Tokenizer(Path(complete))


def _arguments(options: TrainingOptions, num_rows: int) -> TrainingArguments:
    steps_of_epoch = math.ceil(num_rows / (options.batch_size * options.accumulate))
    steps = options.max_steps if options.max_steps > 0 else steps_of_epoch * options.epochs
    return TrainingArguments(
        output_dir=str(options.checkpoints),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate or _DEFAULT_RATES[options.tune],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(options.warmup * steps),
        weight_decay=options.weight_decay,
        adam_beta2=options.beta2,
        max_grad_norm=1.0,
        logging_first_step=True,
        seed=options.seed,
        data_seed=options.seed,
        bf16=options.bf16,
        activation_checkpointing=options.gradient_checkpointing,
        dataloader_num_workers=options.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["target"],
        report_to=[],
        deepspeed=str(options.deepspeed) if options.deepspeed else None,
        fsdp="full_shard auto_wrap" if options.fsdp else None,
        fsdp_config=json.loads(options.fsdp.read_text("utf-8")) if options.fsdp else None,
        ddp_find_unused_parameters=False,
    )


class _Trainer(Trainer):
    """The library's Trainer; its state holds what is trained and not the frozen rest."""

    group_by_length = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.group_by_length:
            return super()._get_train_sampler(train_dataset)
        dataset = train_dataset or self.train_dataset
        assert isinstance(dataset, RowDataset)
        rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroups(dataset.media_lengths(), rows_per_step, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert self.model is not None
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: tensor for name, tensor in state.items() if name in trained})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """What is frozen is not in the state, and need not be."""


class _Curve(TrainerCallback):
    """loss.json and loss.png, drawn anew whenever the run saves its state, and at its end."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero:
            losses = [entry for entry in state.log_history if "loss" in entry]
            (self.out / "loss.json").write_text(json.dumps(losses, indent=0), "utf-8")
            draw_curve(losses, self.out / "loss.png")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._draw(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise CheckpointMismatch(
                f"the loss is {logs['loss']} at step {state.global_step}: lower --learning-rate, or look at the data"
            )
