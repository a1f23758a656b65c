"""Every help text of `vl2` is a full sentence in the field's own words."""

import re

import click
import pytest

from conftest import ROOT
from videollama_client.cli import main_group

CONTEXT = click.Context(main_group)
COMMANDS = {name: main_group.get_command(CONTEXT, name) for name in main_group.list_commands(CONTEXT)}
# Words that this project once had for what the field calls media encoder, audio tower, KV cache, concurrent requests.
PRIVATE = re.compile(
    r"\b(perceiver|ears?|hears?|heard|sight|lessons?|doors?|roads?|keys and values|questions at a time|sound track|blind)\b",
    re.I,
)


def texts(command: click.Command) -> dict[str, str]:
    options = {param.opts[0]: param.help for param in command.params if isinstance(param, click.Option)}
    return {"": (command.help or "").split("\n\n")[0]} | {name: text or "" for name, text in options.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_is_a_sentence(name):
    for option, text in texts(COMMANDS[name]).items():
        assert re.fullmatch(r"[A-Z](.|\n)*\.", text.strip()), (name, option, text)
        assert not PRIVATE.search(text), (name, option, text)


def test_the_list_of_commands_is_made_of_sentences():
    rows = main_group.get_help(CONTEXT).split("Commands:\n")[1].strip().splitlines()
    assert len(rows) == len(COMMANDS)
    for row in rows:
        assert re.fullmatch(r"\s*[a-z]+ +[A-Z].*\.", row), row


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_documents_use_the_words_of_the_field(path):
    if path.name != "log.md":  # what was decided stands there as it was said
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert not PRIVATE.search(line), f"{path.name}:{number}: {line}"
