"""The held-out sets of the synthetic world: answers must equal the expected one; multiple choice is scored by letter."""

from collections.abc import Sequence
from pathlib import Path

from videollama_benchmarks.tasks.answers import find_letter
from videollama_benchmarks.tasks.items import Item, Task, Verdict, need, read_json_file


def load_shapes(folder: Path) -> list[Item]:
    """Load FOLDER/held_out.json, FOLDER/sounds_held_out.json, or both, and the media that they name, as `vl2 shapes` writes them."""
    paths = [path for path in (folder / "held_out.json", folder / "sounds_held_out.json") if path.is_file()]
    return [_item(entry, path) for path in paths or [folder / "held_out.json"] for entry in read_json_file(path)]


def _item(entry: dict, path: Path) -> Item:
    kind = next((kind for kind in ("image", "audio") if kind in entry), "video")
    question, answer = (need(message, "value", path) for message in need(entry, "conversations", path))
    return Item(
        name=need(entry, "id", path),
        kind="video+audio" if entry.get("with_audio") else kind,
        media=path.parent / entry[kind],
        questions=(question.removeprefix(f"<{kind}>\n"),),
        truth=answer,
        groups={
            "topic": need(entry, "topic", path),
            "form": need(entry, "form", path),
            "needs the order of frames": "yes" if entry.get("temporal") else "no",
        },
    )


def read_shapes(item: Item, answers: Sequence[str]) -> Verdict:
    """Right if the letter (for multiple choice) or the whole answer equals the expected one."""
    truth = item.truth
    if item.groups["form"] == "choice":
        letter = find_letter(answers[0], "ABCD")
        return Verdict(letter or answers[0], letter == find_letter(truth, "ABCD"))
    return Verdict(answers[0], same_word(answers[0], truth))


def same_word(text: str, truth: str) -> bool:
    """Equality ignoring case, and spaces and full stops at both ends."""
    return text.strip(" .").upper() == truth.strip(" .").upper()


TASKS = [Task("shapes", "held-out clips of the synthetic world", load_shapes, read_shapes, max_new_tokens=48)]
