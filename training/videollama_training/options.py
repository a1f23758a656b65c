"""What one training run does, as data."""

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


@dataclass(frozen=True)
class TrainingOptions:
    """Rates, rank and alpha default to the reference's recipes; docs/training.md maps its arguments to these."""

    data: tuple[Path, ...]
    out: Path
    checkpoint: Path | None = None  # None: base, tower and connector say where to start
    layout: str | None = None  # of a published data set (layouts.py): then `data` is its folder
    media_folder: Path | None = None  # None: beside each JSON file
    base: Path | None = None
    tower: Path | None = None
    connector: str | None = None  # type of a connector with fresh weights
    num_frames: int | None = None  # of a fresh connector; None: 8, as in the reference
    select_layer: int | None = None  # of the vision tower, for a fresh connector; None: -2
    audio_tower: Path | None = None  # BEATs' file, for a checkpoint without an audio tower
    tune: str = "full"  # connector (pretraining) | audio (its projector alone) | full | lora | qlora
    tune_tower: bool = False  # the reference freezes it
    tune_audio_tower: bool = False  # with audio or full; the reference's later audio stages do
    freeze_backbone: bool = False  # with full
    freeze_connector: bool = False
    plain: bool | None = None  # the format of pretraining; None: exactly when a projector alone is tuned
    epochs: float = 1.0
    max_steps: int = -1  # counts instead of epochs when positive
    learning_rate: float | None = None
    connector_learning_rate: float | None = None  # of connector and audio projector; None: the same
    batch_size: int = 8  # media per process and step
    global_batch_size: int | None = None  # of all processes and accumulated steps; then `accumulate` follows from it
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
    lora_bias: str = "none"
    skip_bad: bool = False
    check_only: bool = False
    resume: bool = False
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    workers: int = 0  # processes that decode media
    save_steps: int = 500
    save_limit: int = 2  # states that are kept
    log_steps: int = 10
    tensorboard: bool = False
    deepspeed: Path | None = None
    fsdp: Path | None = None

    def __post_init__(self) -> None:
        if self.tune not in TUNED:
            raise InvalidRequest(f"tune is {self.tune!r}; wanted one of {', '.join(TUNED)}")
        if self.lora_bias not in LORA_BIASES:
            raise InvalidRequest(f"lora_bias is {self.lora_bias!r}; wanted one of {', '.join(LORA_BIASES)}")
        if (self.checkpoint is None) == (self.connector is None):
            raise InvalidRequest(
                "name where to start: either --checkpoint FOLDER, or --connector TYPE with --base and --tower "
                "for a language model, a vision tower and a fresh connector"
            )
        if self.connector is None and (self.num_frames is not None or self.select_layer is not None):
            raise InvalidRequest(
                "--num-frames and --select-layer belong to a fresh connector; a checkpoint has its own"
            )
        if self.global_batch_size is not None and self.accumulate != 1:
            raise InvalidRequest("--global-batch-size says how many steps are accumulated: leave out --accumulate")
        if self.freeze_backbone and self.tune != "full":
            raise InvalidRequest(f"--freeze-backbone belongs to --tune full; --tune {self.tune} freezes it anyway")
        if self.freeze_connector and self.tune in ("connector", "audio"):
            raise InvalidRequest(f"--tune {self.tune} with --freeze-connector leaves nothing to train")
        if self.layout is not None and len(self.data) != 1:
            raise InvalidRequest(f"--layout takes one folder as DATA; found {len(self.data)} paths")

    @property
    def is_plain(self) -> bool:
        if self.plain is not None:
            return self.plain
        return self.tune == "connector" or (self.tune == "audio" and not self.tune_audio_tower)

    @property
    def rate(self) -> float:
        return self.learning_rate or _DEFAULT_RATES[self.tune]

    @property
    def state(self) -> Path:
        """Where the run keeps what --resume needs."""
        return self.out / "state"

    def steps_to_accumulate(self, processes: int) -> int:
        """Raises: InvalidRequest where the global batch cannot be made of whole steps."""
        if self.global_batch_size is None:
            return self.accumulate
        at_once = processes * self.batch_size
        if self.global_batch_size % at_once:
            raise InvalidRequest(
                f"--global-batch-size {self.global_batch_size} is no multiple of {processes} processes x "
                f"--batch-size {self.batch_size}"
            )
        return self.global_batch_size // at_once
