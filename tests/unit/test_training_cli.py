"""`vl2 train` takes every option of a run, and states no default of its own."""

from dataclasses import fields
from pathlib import Path

import click
import pytest

from videollama_training import cli, train
from videollama_training.options import TrainingOptions


def test_options_left_out_are_those_of_the_dataclass(monkeypatch):
    seen = []

    def stop(options):
        seen.append(options)
        raise click.Abort

    monkeypatch.setattr(train, "check_data", stop)
    with pytest.raises(click.Abort):
        cli.train.main(["d.json", "--checkpoint", "c", "--out", "o", "--check-only"], standalone_mode=False)
    assert seen == [TrainingOptions(data=(Path("d.json"),), out=Path("o"), checkpoint=Path("c"), check_only=True)]


def test_every_option_of_a_run_can_be_said_on_the_command_line():
    assert {parameter.name for parameter in cli.train.params} == {field.name for field in fields(TrainingOptions)}
