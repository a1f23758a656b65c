"""The options of a training run."""

from dataclasses import dataclass
from pathlib import Path

from videollama_core.protocol.errors import InvalidRequest

TUNED = ("connector", "audio", "full", "lora", "qlora")
LORA_BIASES = ("none", "all", "lora_only")
_DEFAULT_RATES = {  # the reference's recipes
    "connector": 1e-3,
    "audio": 1e-3,
    "full": 2e-5,
    "lora": 2e-5,
    "qlora": 2e-5,
}
# Lowest and highest value of each number; NaN is in none of them.
_RANGES = {
    "epochs": (0, 1e6),
    "learning_rate": (0, 1e3),
    "connector_learning_rate": (0, 1e3),
    "batch_size": (1, 1e6),
    "global_batch_size": (1, 1e9),
    "questions_per_media": (1, 1e6),
    "accumulate": (1, 1e6),
    "warmup": (0, 1),
    "weight_decay": (0, 1e3),
    "beta2": (0, 1),
    "max_tokens": (1, 1e7),
    "lora_rank": (1, 4096),  # as a conversion takes them
    "lora_alpha": (1, 1e6),
    "lora_dropout": (0, 1),
    "workers": (0, 1024),
    "save_steps": (1, 1e9),
    "save_limit": (1, 1e6),
    "log_steps": (1, 1e9),
}


@dataclass(frozen=True)
class TrainingOptions:
    """Learning rates, rank and alpha default to the reference's recipes; docs/training.md maps its arguments to these."""

    data: tuple[Path, ...]
    out: Path
    checkpoint: Path | None = None  # None: start from base, tower and connector
    layout: str | None = None  # name of a published data set's layout (layouts.py); `data` is then its folder
    media_folder: Path | None = None  # None: the folder of each JSON file
    base: Path | None = None
    tower: Path | None = None
    connector: str | None = None  # type of a newly initialized connector
    num_frames: int | None = None  # for a new connector; None: 8, as in the reference
    select_layer: int | None = None  # of the vision tower, for a new connector; None: -2
    audio_tower: Path | None = None  # BEATs' file, for a checkpoint without an audio tower
    tune: str = "full"  # connector (pretraining) | audio (only its projector) | full | lora | qlora
    tune_tower: bool = False  # the reference freezes it
    tune_audio_tower: bool = False  # with audio or full; the reference's later audio stages do
    freeze_backbone: bool = False  # with full
    freeze_connector: bool = False
    plain: bool | None = None  # the pretraining format; None: only if just a projector is tuned
    epochs: float = 1.0
    max_steps: int = -1  # replaces epochs if positive
    learning_rate: float | None = None
    connector_learning_rate: float | None = None  # of connector and audio projector; None: `learning_rate`
    batch_size: int = 8  # media per process and step
    global_batch_size: int | None = None  # over all processes and accumulated steps; determines `accumulate`
    group_by_length: bool = False  # batch rows with equal numbers of media tokens, for less padding
    questions_per_media: int = 8  # maximum number of samples about the same media in one row
    accumulate: int = 1  # steps whose gradients are accumulated
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    beta2: float = 0.999  # of AdamW
    max_tokens: int = 2048
    pad_to_square: bool = False  # the reference's fine-tuning does, its inference does not
    lora_rank: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    lora_bias: str = "none"
    skip_bad: bool = False
    check_only: bool = False
    resume: bool = False
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    workers: int = 0  # processes that decode media
    save_steps: int = 500
    save_limit: int = 2  # number of saved states to keep
    log_steps: int = 10
    tensorboard: bool = False
    deepspeed: Path | None = None
    fsdp: Path | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidRequest(
                    f"--{name.replace('_', '-')} is {value}; it takes a number from {least} to {most:g}"
                )
        if self.tune not in TUNED:
            raise InvalidRequest(f"tune is {self.tune!r}; it must be one of {', '.join(TUNED)}")
        if self.lora_bias not in LORA_BIASES:
            raise InvalidRequest(f"lora_bias is {self.lora_bias!r}; it must be one of {', '.join(LORA_BIASES)}")
        if (self.checkpoint is None) == (self.connector is None):
            raise InvalidRequest(
                "give a starting point: either --checkpoint FOLDER, or --connector TYPE with --base and --tower "
                "for a language model, a vision tower and a new connector"
            )
        if self.connector is None and (self.num_frames is not None or self.select_layer is not None):
            raise InvalidRequest(
                "--num-frames and --select-layer are only for a new connector (--connector); a checkpoint has its own"
            )
        if self.global_batch_size is not None and self.accumulate != 1:
            raise InvalidRequest(
                "--global-batch-size determines the number of accumulated steps: leave out --accumulate"
            )
        if self.freeze_backbone and self.tune != "full":
            raise InvalidRequest(f"--freeze-backbone is only for --tune full; --tune {self.tune} freezes it anyway")
        if self.freeze_connector and self.tune in ("connector", "audio"):
            raise InvalidRequest(f"--tune {self.tune} with --freeze-connector leaves nothing to train")
        if self.layout is not None and len(self.data) != 1:
            raise InvalidRequest(f"--layout needs exactly one folder as DATA, not {len(self.data)} paths")

    @property
    def is_plain(self) -> bool:
        """Whether samples have the pretraining format."""
        if self.plain is not None:
            return self.plain
        return self.tune == "connector" or (self.tune == "audio" and not self.tune_audio_tower)

    @property
    def rate(self) -> float:
        """The learning rate, by default that of the reference's recipe."""
        return _DEFAULT_RATES[self.tune] if self.learning_rate is None else self.learning_rate

    @property
    def state(self) -> Path:
        """Folder of the saved states for --resume."""
        return self.out / "state"

    def steps_to_accumulate(self, processes: int) -> int:
        """Number of steps per update. Raises: InvalidRequest if the global batch is not a multiple of a step."""
        if self.global_batch_size is None:
            return self.accumulate
        at_once = processes * self.batch_size
        if self.global_batch_size % at_once:
            raise InvalidRequest(
                f"--global-batch-size {self.global_batch_size} is not a multiple of {processes} processes x "
                f"--batch-size {self.batch_size}"
            )
        return self.global_batch_size // at_once
