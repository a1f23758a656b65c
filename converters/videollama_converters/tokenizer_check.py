"""Tests a checkpoint's tokenizer and chat template in a separate process: they are untrusted, and may never finish.

The process writes the files that the bundle will hold, and builds prompts as the server will: short ones, long ones and a
conversation. A tokenizer that takes too long or too much memory, or ends the process, is refused before anything is served.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from videollama_core.checkpoint.files import find_file, in_words
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.model.config import ModelConfig
from videollama_core.prompt import render_prompt, tokenize_prompt
from videollama_core.protocol.errors import CheckpointMismatch, VideoLlamaError
from videollama_core.text import Tokenizer, read_generation_defaults

CPU_SECONDS = 8
WALL_SECONDS = 60.0  # allows for a busy machine
MEMORY_BYTES = 768 * 2**20  # beyond what the process uses at its start
_LENGTHS = (1, 100, 10_000, 100_000)  # characters of a question
_TURNS = 21
_ANSWER = "answer: "  # prefix of the child's last line


def check_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Raises: CheckpointMismatch unless the folder's tokenizer and chat template build prompts of any length within limits."""
    command = [sys.executable, "-m", __name__, str(folder), json.dumps(_facts(config))]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=WALL_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise CheckpointMismatch(_endless(folder, f"{WALL_SECONDS:g} s")) from None
    lines = [line for line in child.stdout.decode("utf-8", "replace").splitlines() if line.startswith(_ANSWER)]
    if not lines:
        raise CheckpointMismatch(_endless(folder, f"{CPU_SECONDS} s or {MEMORY_BYTES // 2**20} MB"))
    problem = json.loads(lines[-1].removeprefix(_ANSWER))
    if problem:
        raise CheckpointMismatch(problem)


def _facts(config: ModelConfig) -> dict[str, object]:
    return {"family": config.language.family, "vocab_size": config.language.vocab_size, "rows": config.media_tokens}


def _endless(folder: Path, limit: str) -> str:
    return f"the tokenizer or chat template of {folder} needs more than {limit} for a prompt, or ends its process"


def main() -> None:
    """The child process: prints the problem, or an empty string, as JSON."""
    source, facts = Path(sys.argv[1]), json.loads(sys.argv[2])
    if not (find_file(source, "tokenizer.json") or find_file(source, "tokenizer.model")):
        import transformers.models.auto.tokenization_auto  # noqa: F401  # large: must not count against the limit
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with tempfile.TemporaryDirectory() as folder:
            prove(source, Path(folder), facts["family"], facts["vocab_size"], facts["rows"])
        problem = ""
    except VideoLlamaError as error:
        problem = str(error)
    except BaseException as error:  # a panic of the tokenizers library is not an Exception
        problem = f"the tokenizer of {source} does not work: {in_words(error)}"
    sys.stdout.write(f"\n{_ANSWER}{json.dumps(problem)}\n")


def prove(source: Path, folder: Path, family: str, vocab_size: int, rows: int) -> None:
    """Use the tokenizer as a server does. Raises: VideoLlamaError, and any error of a library."""
    copy_tokenizer(source, folder)
    tokenizer = Tokenizer(folder)
    tokenizer.check(vocab_size)
    ends = read_generation_defaults(folder, tokenizer).end_ids
    if not ends or max(ends) >= vocab_size:
        raise CheckpointMismatch(
            f"{source} has the end ids {list(ends)[:8]}; expected at least one, all below {vocab_size}"
        )
    for length in _LENGTHS:
        question = [{"role": "user", "content": ("why? " * (length // 5 + 1))[:length]}]
        for modality in ("video", "text"):
            prompt = render_prompt(tokenizer, family, question, modality)
            if question[0]["content"].strip() not in prompt:
                raise CheckpointMismatch(f"the chat template of {source} omits the question")
            tokenize_prompt(tokenizer, prompt, modality, rows, vocab_size)
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": f"turn {number}"} for number in range(_TURNS)]
    render_prompt(tokenizer, family, turns, "text")


if __name__ == "__main__":
    main()
