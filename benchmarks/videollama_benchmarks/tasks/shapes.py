"""The held-out sets of the synthetic world: right is what equals the expected answer, letters by their letter."""

from collections.abc import Sequence
from pathlib import Path

from videollama_benchmarks.tasks.answers import find_letter
from videollama_benchmarks.tasks.items import Item, Task, Verdict, need, read_json_file


def load_shapes(folder: Path) -> list[Item]:
    """FOLDER/held_out.json, FOLDER/sounds_held_out.json, or both, and the media that they name, as `vl2 shapes` writes them."""
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
    wanted = item.truth
    if item.groups["form"] == "choice":
        letter = find_letter(answers[0], "ABCD")
        return Verdict(letter or answers[0], letter == find_letter(wanted, "ABCD"))
    return Verdict(answers[0], same_word(answers[0], wanted))


def same_word(text: str, wanted: str) -> bool:
    """Equality in upper case without spaces and full stops around."""
    return text.strip(" .").upper() == wanted.strip(" .").upper()


TASKS = [Task("shapes", "held-out clips of the synthetic world", load_shapes, read_shapes, max_new_tokens=48)]
