"""The held-out set of the synthetic world: right is what equals the expected answer, letters by their letter."""

from collections.abc import Sequence
from pathlib import Path

from videollama_benchmarks.answers import find_letter, same_word
from videollama_benchmarks.items import Item, Task, Verdict, need, read_json_file


def load_shapes(folder: Path) -> list[Item]:
    """FOLDER/held_out.json and the media that it names, as `vl2 shapes` writes them."""
    path = folder / "held_out.json"
    items = []
    for entry in read_json_file(path):
        kind = "image" if "image" in entry else "video"
        question, answer = (need(message, "value", path) for message in need(entry, "conversations", path))
        items.append(
            Item(
                name=need(entry, "id", path),
                kind=kind,
                media=folder / entry[kind],
                questions=(question.removeprefix(f"<{kind}>\n"),),
                truth=answer,
                groups={
                    "topic": need(entry, "topic", path),
                    "form": need(entry, "form", path),
                    "needs the order of frames": "yes" if entry.get("temporal") else "no",
                },
            )
        )
    return items


def read_shapes(item: Item, answers: Sequence[str]) -> Verdict:
    wanted = item.truth
    if item.groups["form"] == "choice":
        letter = find_letter(answers[0], "ABCD")
        return Verdict(letter or answers[0], letter == find_letter(wanted, "ABCD"))
    return Verdict(answers[0], same_word(answers[0], wanted))


TASKS = [Task("shapes", "held-out clips of the synthetic world", load_shapes, read_shapes, max_new_tokens=48)]
