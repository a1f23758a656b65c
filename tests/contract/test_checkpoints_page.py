"""docs/checkpoints.md: every published checkpoint, the size that its shapes give, and its two commands."""

import re

import pytest

from conftest import ROOT
from videollama_converters.plan import count_parameters
from videollama_core.checkpoint.variants import VARIANTS

PAGE = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")


def row(name: str) -> str:
    variant, count = VARIANTS[name], sum(count_parameters(name))
    tower, language = variant.tower.split("/")[1], variant.language_model
    sizes = f"{count / 1e9:.2f} | {2 * count / 1e9:.1f} | {4 * count / 1e9:.1f}"
    return f"| {variant.hub_id} | {variant.num_frames} | {tower} | {language} | {variant.media_tokens:,} | {sizes} |"


def test_the_table_holds_every_published_checkpoint_and_nothing_else():
    rows = re.findall(r"^\| DAMO-NLP-SG/.*$", PAGE, re.MULTILINE)
    assert rows == [row(name) for name in VARIANTS]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_two_commands_of_each(name):
    commands = f"vl2 convert {VARIANTS[name].hub_id} --out build/{name}\nvl2 serve build/{name}\n"
    assert f"```sh\n{commands}```" in PAGE
