"""transformers' Trainer, configured for this model."""

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from videollama_core.protocol.errors import CheckpointMismatch, InvalidRequest
from videollama_training.curve import draw_curve
from videollama_training.data.batches import LengthGroups, RowDataset
from videollama_training.options import TrainingOptions

CONNECTORS = ("connector.", "audio.projector.")  # prefixes of the parameters with `connector_learning_rate`


def training_arguments(options: TrainingOptions) -> TrainingArguments:
    """The Trainer's arguments. Call it before the model is loaded: DeepSpeed's ZeRO 3 splits weights while they are read.

    Raises: InvalidRequest for an option whose package is missing.
    """
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InvalidRequest("--tensorboard needs the package tensorboard: pip install tensorboard")
    if options.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise InvalidRequest("--deepspeed needs the package deepspeed: pip install deepspeed")
    if options.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(options.out / "tensorboard")
    if options.bf16 and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 for products that are not in bfloat16
    return TrainingArguments(
        output_dir=str(options.state),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.steps_to_accumulate(int(os.environ.get("WORLD_SIZE", "1"))),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        learning_rate=options.rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
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
        save_total_limit=options.save_limit,
        logging_steps=options.log_steps,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["target"],
        report_to=["tensorboard"] if options.tensorboard else [],
        deepspeed=str(options.deepspeed) if options.deepspeed else None,
        fsdp="full_shard auto_wrap" if options.fsdp else None,
        fsdp_config=json.loads(options.fsdp.read_text("utf-8")) if options.fsdp else None,
        ddp_find_unused_parameters=False,
    )


class VideoTrainer(Trainer):
    """A Trainer whose saved states have only the trained parameters."""

    group_by_length = False
    connector_learning_rate: float | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The library's optimizer, with `connector_learning_rate` for connector and audio projector if it is set."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if not is_new or self.connector_learning_rate is None:
            return optimizer
        trained: Any = self.model if model is None else model
        connectors = {id(parameter) for name, parameter in trained.named_parameters() if name.startswith(CONNECTORS)}
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            for is_connector, rate in ((False, group["lr"]), (True, self.connector_learning_rate)):
                chosen = [parameter for parameter in group["params"] if (id(parameter) in connectors) == is_connector]
                if chosen:
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
        return optimizer

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
        """Do not warn: frozen parameters are not in the state by design."""


class Curve(TrainerCallback):
    """Writes loss.json and loss.png whenever the run saves its state, and at its end."""

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
                f"the loss is {logs['loss']} at step {state.global_step}: lower --learning-rate, or check the data"
            )
