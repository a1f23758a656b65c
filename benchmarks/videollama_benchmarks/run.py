"""Ask everything, concurrently and resumably; then judge, add up and report."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videollama_benchmarks.judge import Judge
from videollama_benchmarks.sources import Answerer
from videollama_benchmarks.tasks.items import Item, Task, Verdict
from videollama_core.protocol.errors import (
    ArtifactMismatch,
    InvalidRequest,
    Overloaded,
    ServerUnreachable,
    StageFailed,
    VideoLlamaError,
)

ATTEMPTS = 6  # at a server that is full or starting a stage again
RETRY_SECONDS = 1.0


class Journal:
    """Results by name, a line each, written as they come: a run that was killed goes on where it stopped."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        text = path.read_text("utf-8") if path.exists() else ""
        lines = text.splitlines()
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run
            if "run" in entry:
                if entry["run"] != key:
                    raise ArtifactMismatch(
                        f"{path} belongs to another run ({entry['run']}); this one is {key}: name another --out"
                    )
            else:
                self.results[entry["name"]] = entry["result"]
        if not lines:
            self._write({"run": key})
        elif not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def add(self, name: str, result: Any) -> None:
        with self._lock:
            self.results[name] = result
            self._write({"name": name, "result": result})

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Outcome:
    """Items with what became of them, and those that could not be asked."""

    results: list[tuple[Item, Verdict]]
    failed: dict[str, str]


def work(
    title: str, names: Sequence[str], do: Callable[[str], Any], journal: Journal, concurrency: int
) -> dict[str, str]:
    """Do what the journal lacks. Returns what failed, by name; it is tried again in the next run.

    Raises: ServerUnreachable, when there is nobody to ask.
    """
    failed: dict[str, str] = {}
    todo = [name for name in names if name not in journal.results]
    with tqdm(total=len(names), initial=len(names) - len(todo), desc=title, unit="item") as bar:
        with ThreadPoolExecutor(concurrency) as pool:
            futures = {pool.submit(_with_restarts, do, name): name for name in todo}
            try:
                for future in as_completed(futures):
                    name = futures[future]
                    try:
                        journal.add(name, future.result())
                    except ServerUnreachable:
                        raise
                    except VideoLlamaError as error:
                        failed[name] = error.to_wire()
                    bar.update()
            finally:
                pool.shutdown(cancel_futures=True)
    return failed


def _with_restarts(do: Callable[[str], Any], name: str) -> Any:
    for attempt in range(ATTEMPTS):
        try:
            return do(name)
        except (Overloaded, StageFailed):  # full, or a stage that died and is started again
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(RETRY_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def ask_all(task: Task, items: Sequence[Item], answerer: Answerer, journal: Journal, concurrency: int) -> Outcome:
    """Answers of all items, read where the task reads them itself."""
    by_name = {item.name: item for item in items}

    def do(name: str) -> list[str]:
        return [answerer(by_name[name], question) for question in by_name[name].questions]

    failed = work(f"{task.name}: answers", list(by_name), do, journal, concurrency)
    read = task.read or (lambda item, answers: Verdict(" | ".join(answers)))
    results = [(item, read(item, journal.results[item.name])) for item in items if item.name in journal.results]
    return Outcome(results, failed)


def judge_all(
    task: Task, outcome: Outcome, answers: Journal, judge: Judge, journal: Journal, concurrency: int
) -> Outcome:
    """The judge's verdict on every answer."""
    assert task.judge is not None
    asked = {
        item.name: {
            f"{item.name}#{question.aspect}#{place}": question
            for place, question in enumerate(task.judge(item, answers.results[item.name]))
        }
        for item, _ in outcome.results
    }
    questions = {name: question for several in asked.values() for name, question in several.items()}

    def do(name: str) -> dict[str, Any]:
        found = judge.ask(questions[name])
        return {"score": found.score, "right": found.right}

    failed = work(f"{task.name}: judge", list(questions), do, journal, concurrency)
    results = []
    for item, verdict in outcome.results:
        aspects: dict[str, list[str]] = {}
        for name, question in asked[item.name].items():
            aspects.setdefault(question.aspect, []).append(name)
        for aspect, names in aspects.items():
            if not all(name in journal.results for name in names):
                continue
            replies = [journal.results[name] for name in names]
            score = int(sum(reply["score"] for reply in replies) / len(replies))  # cut off, as the reference does
            groups = {"aspect": aspect} if aspect != "answer" else item.groups
            judged = Verdict(verdict.prediction, replies[0]["right"], score)
            results.append((replace(item, groups=groups), judged))
    return Outcome(results, outcome.failed | failed)


def check_names(items: Iterable[Item]) -> None:
    """Raises: InvalidRequest if two items have one name."""
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise InvalidRequest(f"two items are named {item.name!r}; each needs a name of its own")
        seen.add(item.name)
