"""Every command of the documentation can be typed: its subcommand, options, targets and files exist.

They are run in tests/service/test_documentation.py, but for those of `documented.NOT_RUN`.
"""

import re
import shlex
import tomllib

import click
import pytest
import yaml

from conftest import ROOT
from documented import NOT_RUN, SHELL, blocks, form, inline_commands
from videollama_client.cli import main_group

SHELL_BLOCKS = [block for block in blocks() if block.language in SHELL]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
CHECKED_BY_TYPE = (click.Choice, click.types.IntParamType, click.types.FloatParamType)


def can_be_typed(words: list[str], values: bool = True) -> None:
    """Raises where a program, an option or a file does not exist.

    Args:
        values: also whether options take what they are given; running text may name it in capitals.
    """
    while "=" in words[0]:
        words = words[1:]
    program, *rest = words
    if program == "vl2":
        _vl2(rest, values)
    elif program == "make":
        for target in (word for word in rest if "=" not in word):
            assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), f"make {target}: no such target"
    elif program == "kubectl":
        assert rest[:2] == ["apply", "-k"] and (ROOT / rest[2] / "kustomization.yaml").is_file()
    elif program == "docker":
        assert "-f" in rest and (ROOT / rest[rest.index("-f") + 1]).is_file()
    elif program in ("sh", "python"):
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program == "pip":
        for extra in re.findall(r"(?:videollama2-service|\.)\[([\w,-]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(EXTRAS), extra
    else:
        assert program in ("curl", "perf_analyzer", "echo", "promtool"), (
            f"say here how a command of {program} is checked"
        )


def _vl2(words: list[str], values: bool) -> None:
    command = main_group.get_command(click.Context(main_group), words[0])
    assert command is not None, words[0]
    context = click.Context(command, info_name=words[0])
    values_of, rest, _ = command.make_parser(context).parse_args(words[1:])
    assert not rest, f"vl2 {words[0]} takes no {rest}"
    for parameter in command.params:
        value = values_of.get(parameter.name)
        if values and isinstance(value, str) and isinstance(parameter.type, CHECKED_BY_TYPE):
            parameter.type.convert(value, parameter, context)
        needed = parameter.required and isinstance(parameter, click.Argument)
        assert not (values and needed and not value), f"vl2 {words[0]} wants {parameter.name}"


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.name)
def test_commands_of_a_block(block):
    assert block.commands
    for command in block.commands:
        for part in re.split(r"\s[|&]\s?", re.sub(r"\s2?>\s*\S+", "", command)):
            if part.strip():
                can_be_typed(shlex.split(part))


def test_commands_in_running_text():
    commands = inline_commands()
    assert len(commands) > 50
    wrong = {}
    for page, command in commands:
        try:
            can_be_typed(shlex.split(command.replace("...", "")), values=False)
        except click.BadOptionUsage:  # named without what it takes
            can_be_typed([*shlex.split(command), "VALUE"], values=False)
        except (AssertionError, click.ClickException) as error:
            wrong[page, command] = str(error) or error
    assert not wrong


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "python"], ids=lambda block: block.name
)
def test_programs_compile(block):
    compile(block.text, block.name, "exec")


def test_data_of_the_pages_is_well_formed():
    for block in blocks():
        if block.language in ("json", "yaml"):
            yaml.safe_load(block.text)


def test_every_fenced_block_names_its_language():
    """A block without a language is a picture of text; nobody types it."""
    assert {block.language for block in blocks()} <= {*SHELL, "python", "json", "yaml", ""}
    for block in blocks():
        assert block.language or not re.match(r"\s*(vl2|make|\.venv|pip|docker|kubectl|\$) ", block.text), block.name


def test_every_excused_block_exists():
    forms = [each for block in SHELL_BLOCKS for each in block.forms]
    assert not [pattern for pattern in NOT_RUN if not any(re.match(pattern, each) for each in forms)]
    assert form("vl2 convert DAMO-NLP-SG/VideoLLaMA2-7B --out build/x") == "vl2 convert HUB_ID --out BUNDLE"
