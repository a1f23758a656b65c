"""Several processes: the same run as one."""

import json
import os
import subprocess
import sys

import numpy as np
import torch

from conftest import checkpoint
from training_data import custom_sft, videollava_sft
from videollama_training.loading import Loading
from videollama_training.model import TrainableModel
from videollama_training.options import TrainingOptions
from videollama_training.start import open_start
from videollama_training.train import read_all, read_tokenizer, train


def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(tmp_path):
    """torchrun, gloo, on the CPU: the losses of every step, and the checkpoint that is written."""
    folder = custom_sft(tmp_path / "data")  # four media: no step is short of one
    shared = {"checkpoint": checkpoint("mistral-clip-8f"), "layout": "custom_sft", "seed": 3, "max_steps": 3}
    one = train(
        TrainingOptions(
            data=(folder,), out=tmp_path / "one", batch_size=1, accumulate=2, learning_rate=1e-3, log_steps=1, **shared
        )
    )
    said = [word for name, value in shared.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--standalone",
    ]
    command += ["-m", "videollama_client", "train", str(folder), "--out", str(tmp_path / "two"), "--batch-size", "1"]
    command += ["--global-batch-size", "2", "--learning-rate", "1e-3", "--log-steps", "1", *said]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=250)
    two = json.loads((tmp_path / "two/loss.json").read_text())
    assert np.allclose([entry["loss"] for entry in two], [entry["loss"] for entry in one.losses], rtol=1e-5)
    assert two[-1]["loss"] != two[0]["loss"]
    written = [
        TrainableModel(
            open_start(TrainingOptions(data=(), out=tmp_path, checkpoint=tmp_path / name / "checkpoint")), None
        )
        for name in ("one", "two")
    ]
    for (name, first), second in zip(written[0].named_parameters(), written[1].parameters(), strict=True):
        assert torch.allclose(first, second, rtol=1e-2, atol=1e-3), name


def test_every_process_can_run_the_same_layers(tmp_path):
    """What ZeRO 3 needs: pictures like clips, and text by way of a black picture, with the same loss."""
    from videollama_training.data.batches import BadSamples, Collator, RowDataset

    folder = videollava_sft(tmp_path / "data")
    options = TrainingOptions(
        data=(folder,), out=tmp_path, checkpoint=checkpoint("mistral-clip-8f"), layout="videollava_sft"
    )
    parts = open_start(options)
    tokenizer = read_tokenizer(parts.folders.language)
    rows = RowDataset(read_all(options, BadSamples(None)), tokenizer, parts.config)
    batches = [Collator(parts.config)([rows[place]]) for place in range(len(rows))]
    models = [TrainableModel(parts, tokenizer.pad_id, Loading(shared=shared)) for shared in (False, True)]
    ran: list[list[str]] = []
    for batch in batches:
        with torch.inference_mode():
            losses = [float(models[0](**batch)["loss"])]
            names: list[str] = []
            hooks = [
                module.register_forward_hook(lambda *_, name=name, names=names: names.append(name))
                for name, module in models[1].named_modules()
                if not list(module.children())
            ]
            losses.append(float(models[1](**batch)["loss"]))
            for hook in hooks:
                hook.remove()
        assert abs(losses[0] - losses[1]) < 1e-5
        ran.append(sorted(names))
    assert len(batches) == 5 and all(names == ran[0] for names in ran)
