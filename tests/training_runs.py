"""Training runs of the tiny checkpoint for tests: options, losses, rows and models (`world`: conftest.py)."""

from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.text import Tokenizer
from videollama_training.data.batches import RowDataset
from videollama_training.data.samples import read_samples
from videollama_training.model import TrainableModel
from videollama_training.shapes.make import TRAIN
from videollama_training.train import TrainingOptions


def options(world, out, **changes):
    settings = {
        "checkpoint": world / "start",
        "data": (world / "train.json",),
        "out": out,
        "max_steps": 2,
        "batch_size": 2,
        "questions_per_media": 3,
        "log_steps": 1,
        "learning_rate": 1e-3,
        "lora_rank": 4,
        "lora_alpha": 8,
        "warmup": 0.0,
    }
    return TrainingOptions(**{**settings, **changes})


def losses(result):
    return [entry["loss"] for entry in result.losses]


def model_of(folder):
    parts = open_checkpoint(folder)
    return TrainableModel(parts, Tokenizer(parts.folders.language).pad_id), parts


def rows_of(world, parts, questions, name=TRAIN):
    samples = list(read_samples(world / f"{name}.json", world))
    return RowDataset(samples, Tokenizer(parts.folders.language), parts.config, questions=questions)
