"""`vl2 train` takes every option of a run, and defines no defaults of its own."""

from dataclasses import fields
from pathlib import Path

import click
import pytest

from videollama_core.protocol.errors import InvalidRequest
from videollama_training import cli, train
from videollama_training.options import TrainingOptions


def test_omitted_options_have_the_dataclass_defaults(monkeypatch):
    seen = []

    def stop(options):
        seen.append(options)
        raise click.Abort

    monkeypatch.setattr(train, "check_data", stop)
    with pytest.raises(click.Abort):
        cli.train.main(["d.json", "--checkpoint", "c", "--out", "o", "--check-only"], standalone_mode=False)
    assert seen == [TrainingOptions(data=(Path("d.json"),), out=Path("o"), checkpoint=Path("c"), check_only=True)]


def test_every_option_of_a_run_is_a_command_line_option():
    assert {parameter.name for parameter in cli.train.params} == {field.name for field in fields(TrainingOptions)}


@pytest.mark.parametrize(
    "words", ["--batch-size 0", "--epochs nan", "--learning-rate -1", "--lora-rank 0", "--workers -1", "--save-steps 0"]
)
def test_numbers_out_of_range_are_refused_before_data_is_read(words):
    name, value = words.split()
    with pytest.raises(InvalidRequest, match=f"{name} is {value}"):
        cli.train.main(["nowhere.json", "--checkpoint", "c", "--out", "o", name, value], standalone_mode=False)
