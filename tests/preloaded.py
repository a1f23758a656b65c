"""Commands that convert, in processes forked from one that has imported torch: a process of its own takes 2 s for that, and most end at once.

What a new process imports and how it ends is tested where `vl2` is started as a user starts it.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["videollama_client.cli", "videollama_converters.convert"])
SECONDS = 120


def vl2(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run `vl2 words` to its end, as `subprocess.run` does."""
    with TemporaryDirectory() as folder:
        process = _FORKING.Process(
            target=_run, args=(words, cwd or Path.cwd(), dict(os.environ if env is None else env), Path(folder))
        )
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (Path(folder, name).read_text("utf-8") for name in ("stdout", "stderr"))
        return CompletedProcess(["vl2", *words], process.exitcode, out, err)


def _run(words: tuple[str, ...], cwd: Path, env: dict[str, str], folder: Path) -> None:
    for name, number in (("stdout", 1), ("stderr", 2)):
        with (folder / name).open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["vl2", *words]

    from videollama_client.cli import main

    main()
