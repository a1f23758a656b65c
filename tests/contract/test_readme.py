"""README.md tells the truth: its tree exists, its commands are real, and setup says what is missing."""

import os
import re
import subprocess

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")


TREE = re.search(r"## File tree\n\n```\n(.*?)```", README, re.DOTALL)[1]


def test_every_folder_of_the_tree_exists():
    parent = ""
    for line in TREE.splitlines():
        if found := re.match(r"([\w/]+/) ", line):
            parent = found[1]
            assert (ROOT / parent).is_dir(), parent
        elif found := re.match(r"  ([\w/]+/) ", line):
            assert (ROOT / parent / found[1]).is_dir(), line


def test_every_file_of_the_tree_exists():
    folders = [path for path in ROOT.iterdir() if path.name not in (".venv", ".git", "build")]
    tracked = {path.name for folder in folders for path in (folder, *folder.rglob("*"))}
    for name in re.findall(r"[\w/]+\.(?:py|md|sh|txt|yaml)\b", TREE):
        assert name.split("/")[-1] in tracked, name


def test_every_module_of_core_and_server_is_in_the_tree():
    named = set(re.findall(r"\w+\.py", TREE))
    found = {path.name for folder in ("videollama_core", "server") for path in (ROOT / folder).rglob("*.py")}
    assert not found - named - {"__init__.py"}


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}: setup" in makefile


def run_setup(tmp_path, **programs: str) -> subprocess.CompletedProcess[str]:
    """scripts/setup.sh where only these stand-ins and the plain shell tools are found."""
    for name, body in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    for tool in ("sh", "dirname", "cat", "cksum"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    environment = {"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "setup.sh")], env=environment, capture_output=True, text=True
    )


LINUX = "case $1 in -s) echo Linux ;; -m) echo x86_64 ;; esac"


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({"uname": "case $1 in -s) echo Darwin ;; -m) echo arm64 ;; esac"}, "found Darwin on arm64.*pip install"),
        ({"uname": LINUX}, "found no Python; Python 3.11 or 3.12 is needed"),
        ({"uname": LINUX, "python3": "echo 3.9"}, "found 3.9; Python 3.11 or 3.12 is needed"),
        ({"uname": LINUX, "python3": "echo 3.13"}, "found 3.13; Python 3.11 or 3.12 is needed"),
    ],
)
def test_setup_says_what_is_missing(programs, reason, tmp_path):
    found = run_setup(tmp_path, **programs)
    assert found.returncode == 1 and re.search(reason, found.stderr), found.stderr
