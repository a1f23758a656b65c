"""The commands and programs of the documentation: every fenced block of README.md, CONTRIBUTING.md and docs/, as a reader types it."""

import re
import shlex
from dataclasses import dataclass

from conftest import ROOT

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL = ("sh", "bash", "console")

# What no test of this machine can run as it stands, and why. Whether it can be typed at all, test_documented_commands.py tells.
NOT_RUN = {
    r"make test": "it is the run that this test is part of",
    r"vl2 train data.json ": "takes a minute; tests/parity/test_training_processes.py trains by the same command, in two processes",
    r"vl2 plan": "tests/contract/test_plan.py makes the same tables; here it would count eleven networks again",
    r"kubectl apply -k ": "needs a cluster; tests/contract/test_deploy.py renders each folder and checks it",
    r"perf_analyzer ": "a program of NVIDIA's; tests/service/test_perf_analyzer.py downloads it and runs these lines (make test-slow)",
    r"pip install (vllm|numpy<2)": "installs packages; tests/parity/test_vllm_environment.py does (make test-slow)",
    r"vl2 convert FOLDER --out BUNDLE --engine torch ": "tests/service/test_torch_engine.py converts for PyTorch and serves it",
    r"vl2 serve BUNDLE --llm vllm": "needs vLLM; tests/parity/test_vllm.py runs it where there is one",
    r"vl2 (doctor|serve) BUNDLE --decoder nvdec": "needs NVIDIA's driver; tests/unit/test_nvdec.py decodes on one that stands in for it",
    r"pip install videollama2-service\[tensorrt-rtx\]": "make setup has done it",
    r"vl2 convert FOLDER --out BUNDLE --engine tensorrt-rtx": "a server of these engines needs a GPU; tests/contract/test_tensorrt_rtx.py builds them",
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, each in one line and without its comment."""
        complete, open_lines = [], ""
        for line in self.text.replace("\\\n", " ").splitlines():
            open_lines += line + "\n"
            try:
                words = shlex.split(open_lines, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            if words:
                complete.append(_without_comment(open_lines))
            open_lines = ""
        assert not open_lines, f"{self.name}: a quotation is not closed"
        return complete

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(map(form, self.commands))


def _without_comment(line: str) -> str:
    return re.sub(r"\s+# [^'\"\n]*$", "", line.strip()).replace(".venv/bin/", "")


def form(command: str) -> str:
    """A command without what differs between checkpoints: two commands of one form do the same."""
    words = [re.sub(r"^(DAMO-NLP-SG/).*", "HUB_ID", word) for word in shlex.split(command)]
    words = [re.sub(r"^(/models/)?VideoLLaMA2[\w.-]*$", "FOLDER", word) for word in words]
    return " ".join(re.sub(r"^build/[\w./-]+$", "BUNDLE", word) for word in words)


def reason(command: str) -> str | None:
    """Why it is not run here; None if it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, form(command))), None)


def blocks() -> list[Block]:
    result = []
    for path in PAGES:
        text = path.read_text("utf-8")
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: fence.start()].count("\n") + 1
            result.append(Block(str(path.relative_to(ROOT)), line, fence[1], fence[2]))
    return result


def inline_commands() -> list[tuple[str, str]]:
    """(page, command) of the commands in running text, except docs/log.md, which also names former ones."""
    commands = []
    for path in PAGES:
        if path.name != "log.md":
            prose = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
            commands += [
                (path.name, " ".join(each.split())) for each in re.findall(r"`((?:vl2|make) [a-z][^`]+)`", prose)
            ]
    return commands


def to_run() -> list[Block]:
    """Shell blocks with a command that runs here, each once: a block whose forms all occur in another one is left out."""
    shells = [block for block in blocks() if block.language in SHELL]
    runs = {block.name: tuple(each for each in block.commands if reason(each) is None) for block in shells}
    kept: list[Block] = []
    for block in shells:
        own = set(map(form, runs[block.name]))
        others = [set(map(form, runs[other.name])) for other in shells]
        same = any(own == set(map(form, runs[other.name])) for other in kept)
        if own and not same and not any(own < other for other in others):
            kept.append(block)
    return kept
