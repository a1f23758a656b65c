"""A checkpoint's tokenizer and chat template at work, in a process of its own: they are a stranger's, and may not end.

The process makes the files that the bundle will hold, and builds prompts as the server will: short ones, long ones and a
conversation. What takes too long or too much memory there, or ends the process, is refused here, before anything is served.
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
WALL_SECONDS = 60.0  # on a machine that has no time
MEMORY_BYTES = 768 * 2**20  # above what the process holds when it begins
_LENGTHS = (1, 100, 10_000, 100_000)  # characters of a question
_TURNS = 21
_ANSWER = "answer: "  # begins the line that the child ends with


def check_tokenizer(folder: Path, config: ModelConfig) -> None:
    """Raises: CheckpointMismatch unless the folder's tokenizer and chat template make prompts of any length, in bounds."""
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
    return f"the tokenizer or chat template of {folder} takes more than {limit} for a question, or ends its process"


def main() -> None:
    """The child: prints what is wrong, or an empty text."""
    source, facts = Path(sys.argv[1]), json.loads(sys.argv[2])
    if not (find_file(source, "tokenizer.json") or find_file(source, "tokenizer.model")):
        import transformers.models.auto.tokenization_auto  # noqa: F401  # large: not to be counted
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
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        problem = f"the tokenizer of {source} does not work: {in_words(error)}"
    sys.stdout.write(f"\n{_ANSWER}{json.dumps(problem)}\n")


def prove(source: Path, folder: Path, family: str, vocab_size: int, rows: int) -> None:
    """Raises: VideoLlamaError, and whatever a library does."""
    copy_tokenizer(source, folder)
    tokenizer = Tokenizer(folder)
    tokenizer.check(vocab_size)
    ends = read_generation_defaults(folder, tokenizer).end_ids
    if not ends or max(ends) >= vocab_size:
        raise CheckpointMismatch(f"{source} ends answers with the ids {list(ends)[:8]}; wanted ids below {vocab_size}")
    for length in _LENGTHS:
        question = [{"role": "user", "content": ("why? " * (length // 5 + 1))[:length]}]
        for modality in ("video", "text"):
            prompt = render_prompt(tokenizer, family, question, modality)
            if question[0]["content"].strip() not in prompt:
                raise CheckpointMismatch(f"the chat template of {source} leaves out the question")
            tokenize_prompt(tokenizer, prompt, modality, rows, vocab_size)
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": f"turn {number}"} for number in range(_TURNS)]
    render_prompt(tokenizer, family, turns, "text")


if __name__ == "__main__":
    main()
