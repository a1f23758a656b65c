"""Questions about sound that need no judge: ClothoAQA, TUT2017, VocalSound, MUSIC-AVQA."""

import ast
import csv
import re
from collections.abc import Sequence
from pathlib import Path

from videollama_benchmarks.answers import find_letter, letter_of, same_word
from videollama_benchmarks.items import Item, Task, Verdict, find_video, need, read_json_file, read_text_file
from videollama_core.protocol.errors import BadSample

SCENES = (
    "beach",
    "bus",
    "cafe or restaurant",
    "car",
    "city center",
    "forest path",
    "grocery store",
    "home",
    "library",
    "metro station",
    "office",
    "park",
    "residential area",
    "train",
    "tram",
)
_SCENE_LABELS = {"cafe/restaurant": "cafe or restaurant"}
VOCAL_SOUNDS = {
    "/m/01j3sz": "Laughter",
    "/m/07plz5l": "Sigh",
    "/m/01b_21": "Cough",
    "/m/0dl9sf8": "Throat clearing",
    "/m/01hsr_": "Sneeze",
    "/m/07ppn3j": "Sniff",
}


def _classes(question: str, labels: Sequence[str]) -> str:
    options = "\n".join(f"({letter_of(index)}) {label}" for index, label in enumerate(labels))
    return f"{question}\nOptions:\n{options}\n.Answer with the option's letter from the given choices directly and only give the best option."


def load_clothoaqa(folder: Path) -> list[Item]:
    """FOLDER/clotho_aqa_test.csv (file_name, QuestionText, answer, confidence) and audio_files/."""
    path = folder / "clotho_aqa_test.csv"
    items = []
    for place, row in enumerate(csv.DictReader(read_text_file(path).splitlines())):
        question = f"Question: {need(row, 'QuestionText', path)}\nAnswer the question using a single word."
        answer = need(row, "answer", path)
        form = "yes/no" if answer.strip().lower() in ("yes", "no") else "word"
        media = folder / "audio_files" / need(row, "file_name", path)
        items.append(Item(f"{place}", "audio", media, (question,), answer, groups={"form": form}))
    return items


def read_word(item: Item, answers: Sequence[str]) -> Verdict:
    return Verdict(answers[0], same_word(answers[0], item.truth))


def load_tut2017(folder: Path) -> list[Item]:
    """FOLDER/meta.txt (file and scene, separated by tabs) and the audio files that it names."""
    path = folder / "meta.txt"
    rows = [line.split("\t") for line in read_text_file(path).splitlines() if line.strip()]
    question = _classes("Which of these scenes does the sound come from?", SCENES)
    items = []
    for row in rows:
        label = _SCENE_LABELS.get(row[1], row[1].replace("_", " ")) if len(row) > 1 else ""
        if label not in SCENES:
            raise BadSample(f"{path}: the row {row} names none of the scenes {', '.join(SCENES)}")
        items.append(Item(row[0], "audio", folder / row[0], (question,), label, SCENES, {"label": label}))
    return items


def load_vocalsound(folder: Path) -> list[Item]:
    """FOLDER/te.json ({"data": [{wav, labels}]}, labels as AudioSet ids) and audio_16k/."""
    path = folder / "te.json"
    labels = tuple(VOCAL_SOUNDS.values())
    question = _classes("Which of these sounds is it?", labels)
    items = []
    for entry in need(read_json_file(path), "data", path):
        mark, wav = need(entry, "labels", path), need(entry, "wav", path)
        if mark not in VOCAL_SOUNDS:
            raise BadSample(f"{path}: label {mark!r} of {wav} is none of {', '.join(VOCAL_SOUNDS)}")
        label = VOCAL_SOUNDS[mark]
        media = folder / "audio_16k" / Path(wav).name
        items.append(Item(Path(wav).stem, "audio", media, (question,), label, labels, {"label": label}))
    return items


def read_class(item: Item, answers: Sequence[str]) -> Verdict:
    """Right if the label is in the answer, or the answer's letter stands for it."""
    letter = find_letter(answers[0], "".join(letter_of(index) for index in range(len(item.options))))
    named = item.truth.lower() in answers[0].lower()
    meant = letter is not None and item.options[ord(letter) - ord("A")] == item.truth
    return Verdict(letter or answers[0], named or meant)


def load_music_avqa(folder: Path) -> list[Item]:
    """FOLDER/avqa-test.json and videos/<video_id>.mp4; its answers are under the key `anser`, as published."""
    path = folder / "avqa-test.json"
    items = []
    for entry in read_json_file(path):
        question = need(entry, "question_content", path)
        for value in ast.literal_eval(need(entry, "templ_values", path)):
            question = re.sub(r"<\w+>", lambda _, word=str(value): word, question, count=1)  # type: ignore[misc]
        kinds = ast.literal_eval(need(entry, "type", path))
        items.append(
            Item(
                name=str(need(entry, "question_id", path)),
                kind="video+audio",
                media=find_video(folder / "videos", need(entry, "video_id", path)),
                questions=(question,),
                truth=need(entry, "anser", path),
                groups={"modality": kinds[0], "type": "/".join(kinds)},
            )
        )
    return items


TASKS = [
    Task("clothoaqa", "ClothoAQA (sound)", load_clothoaqa, read_word),
    Task("tut2017", "TUT2017 (sound)", load_tut2017, read_class),
    Task("vocalsound", "VocalSound (sound)", load_vocalsound, read_class),
    Task("music-avqa", "MUSIC-AVQA (sound)", load_music_avqa, read_word),
]
