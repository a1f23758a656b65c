"""Runs a benchmark: sends all requests concurrently, resumes interrupted runs, and has answers judged."""

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

ATTEMPTS = 6  # while a server is overloaded or restarting a stage
RETRY_SECONDS = 1.0


class Journal:
    """A file of results, one JSON line per item, written as they arrive, so that a killed run can resume.

    Raises: ArtifactMismatch if the file belongs to a run with another key.
    """

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
                continue  # a truncated last line of a killed run
            if "run" in entry:
                if entry["run"] != key:
                    raise ArtifactMismatch(
                        f"{path} belongs to another run ({entry['run']}); this one is {key}: use another --out"
                    )
            else:
                self.results[entry["name"]] = entry["result"]
        if not lines:
            self._write({"run": key})
        elif not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def add(self, name: str, result: Any) -> None:
        """Record the result of an item; safe to call from several threads."""
        with self._lock:
            self.results[name] = result
            self._write({"name": name, "result": result})

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Outcome:
    """Evaluated items with their verdicts, and failed ones: name -> reason."""

    results: list[tuple[Item, Verdict]]
    failed: dict[str, str]


def work(
    title: str, names: Sequence[str], do: Callable[[str], Any], journal: Journal, concurrency: int
) -> dict[str, str]:
    """Call `do` for every name that the journal lacks, and record the results.

    Returns: failures, name -> error; the next run retries them.
    Raises: ServerUnreachable.
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
        except (Overloaded, StageFailed):  # a failed stage is restarted
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(RETRY_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def ask_all(task: Task, items: Sequence[Item], answerer: Answerer, journal: Journal, concurrency: int) -> Outcome:
    """Answer all items, and score the answers unless a judge does."""
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
    """Have the judge score every answer."""
    assert task.judge is not None
    questions_by_item = {
        item.name: {
            f"{item.name}#{question.aspect}#{place}": question
            for place, question in enumerate(task.judge(item, answers.results[item.name]))
        }
        for item, _ in outcome.results
    }
    questions = {name: question for several in questions_by_item.values() for name, question in several.items()}

    def do(name: str) -> dict[str, Any]:
        judgement = judge.ask(questions[name])
        return {"score": judgement.score, "right": judgement.right}

    failed = work(f"{task.name}: judge", list(questions), do, journal, concurrency)
    results = []
    for item, verdict in outcome.results:
        aspects: dict[str, list[str]] = {}
        for name, question in questions_by_item[item.name].items():
            aspects.setdefault(question.aspect, []).append(name)
        for aspect, names in aspects.items():
            if not all(name in journal.results for name in names):
                continue
            replies = [journal.results[name] for name in names]
            score = int(sum(reply["score"] for reply in replies) / len(replies))  # truncated, as in the reference
            groups = {"aspect": aspect} if aspect != "answer" else item.groups
            judged = Verdict(verdict.prediction, replies[0]["right"], score)
            results.append((replace(item, groups=groups), judged))
    return Outcome(results, outcome.failed | failed)


def check_names(items: Iterable[Item]) -> None:
    """Raises: InvalidRequest if two items have the same name."""
    names: set[str] = set()
    for item in items:
        if item.name in names:
            raise InvalidRequest(f"two items are named {item.name!r}; names must be unique")
        names.add(item.name)
