"""README.md is accurate: its file tree exists, its commands are real, and setup reports what is missing."""

import ast
import os
import re
import subprocess

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")


TREE = re.search(r"## File tree\n.*?```\n(.*?)```", README, re.DOTALL)[1]


def folders_of_the_tree():
    parent = ""
    for line in TREE.splitlines():
        if folder := re.match(r"(  )?([\w/]+/) ", line):
            parent = parent if folder[1] else folder[2]
            yield parent + folder[2] if folder[1] else parent


def modules_of_ours():
    """Python files of this repository; an empty `__init__.py` has no docstring and does not count."""
    folders = {folder.split("/")[0] for folder in folders_of_the_tree()} - {"build"}
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.stat().st_size]


def test_every_folder_of_the_tree_exists():
    assert len(list(folders_of_the_tree())) > 20
    for folder in folders_of_the_tree():
        assert (ROOT / folder).is_dir(), folder


def test_every_file_that_the_tree_names_exists():
    tracked = {path.name for path in modules_of_ours()} | {path.name for path in (*ROOT.glob("*"), *ROOT.glob("*/*"))}
    for name in re.findall(r"[\w/]+\.(?:py|md|sh|txt|yaml)\b", TREE):
        assert name in tracked, name


def test_every_folder_with_modules_is_in_the_tree():
    named = " ".join(folders_of_the_tree())
    folders = {path.parent.relative_to(ROOT) for path in modules_of_ours()}
    assert len(folders) > 20
    for folder in folders:
        if folder.parts[0] != "model_repository" and folder.parts[:2] not in tuple(
            ("tests", name) for name in ("gpu", "page", "prometheus", "real_size")
        ):
            assert f"{folder}/" in named, folder


def test_every_module_has_a_one_line_summary():
    for path in modules_of_ours():
        lines = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()
        assert lines and re.search(r"[.:?]$", lines[0]) and lines[1:2] in ([], [""]), path


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}: setup" in makefile


def run_setup(tmp_path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/setup.sh where only these stand-ins and the plain shell tools are on the PATH."""
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
        ({"uname": "case $1 in -s) echo Darwin ;; -m) echo arm64 ;; esac"}, "this is Darwin on arm64.*pip install"),
        ({"uname": LINUX}, "found no Python, but Python 3.11 or 3.12 is needed"),
        ({"uname": LINUX, "python3": "echo 3.9"}, "found 3.9, but Python 3.11 or 3.12 is needed"),
        ({"uname": LINUX, "python3": "echo 3.13"}, "found 3.13, but Python 3.11 or 3.12 is needed"),
    ],
)
def test_setup_reports_what_is_missing(programs, reason, tmp_path):
    result = run_setup(tmp_path, **programs)
    assert result.returncode == 1 and re.search(reason, result.stderr), result.stderr
