"""The documentation builds as a site without a warning, and its API page is generated from the docstrings."""

import os
import re
import subprocess
import sys

import pytest

import videollama_client
from conftest import ROOT
from videollama_core.protocol.contract import ENTRY


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of its successor
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # strict: a warning is an error, unless --quiet keeps it from being one
    return target


def test_the_api_page_shows_what_the_client_exports(site):
    page = (site / "api/index.html").read_text("utf-8")
    anchors = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="(videollama_[\w.]+)"', page)}
    assert set(videollama_client.__all__) <= anchors


def test_every_page_of_the_folder_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.name not in navigation]
    assert not missing


def test_the_log_has_one_titled_entry_per_decision_newest_first():
    log = (ROOT / "docs/log.md").read_text("utf-8")
    headings = re.findall(r"^#{2,} (.*)", log, re.MULTILINE)
    entries = [re.fullmatch(r"(\d{4}-\d\d-\d\d) - ([a-z]+) - (\S.*)", heading) for heading in headings]
    assert entries and all(entries), [heading for heading, entry in zip(headings, entries, strict=True) if not entry]
    dates = [entry[1] for entry in entries]
    assert dates == sorted(dates, reverse=True)


def tensor_rows() -> list[str]:
    """The tensor table of docs/grpc.md."""
    rows = ["| tensor | type | shape | meaning |", "|---|---|---|---|"]
    for title, tensors in (("asked", ENTRY.inputs), ("answered", ENTRY.outputs)):
        rows.append(f"| **{title}** | | | |")
        for tensor in tensors:
            shape = str(list(tensor.dims)).replace("-1", "n")
            rows.append(f"| `{tensor.name}` | {tensor.wire_dtype} | {shape} | {tensor.meaning.replace(' | ', ', ')} |")
    return rows


def test_the_page_of_grpc_names_every_tensor_of_the_entry():
    page = (ROOT / "docs/grpc.md").read_text("utf-8")
    table = page.partition("<!-- tensors -->\n")[2].partition("\n<!-- end of tensors -->")[0]
    assert table == "\n".join(tensor_rows()), "docs/grpc.md wants:\n" + "\n".join(tensor_rows())
