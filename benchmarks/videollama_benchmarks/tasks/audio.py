"""Audio benchmarks without a judge: ClothoAQA, TUT2017, VocalSound, MUSIC-AVQA.

Each is loaded from the reference's own annotation file if FOLDER has it, or else from the files of the data set.
"""

import ast
import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from videollama_benchmarks.tasks.answers import ends_equal, letter_of
from videollama_benchmarks.tasks.items import (
    Item,
    Task,
    Verdict,
    find_named,
    find_video,
    load_annotated,
    need,
    read_json_file,
    read_json_lines,
    read_text_file,
    read_turns,
)
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


AUDIO_FILES = ("audio_files", "ClothoAQA/audio_files")


def _classes(question: str, labels: Sequence[str]) -> str:
    options = "\n".join(f"({letter_of(index)}) {label}" for index, label in enumerate(labels))
    return f"{question}\nOptions:\n{options}\n.Answer with the option's letter from the given choices directly and only give the best option."


SCENE_QUESTION = _classes("Question: Identify the sound event in the audio.", SCENES)
VOCAL_QUESTION = _classes("Identify the human sound in the audio.", tuple(VOCAL_SOUNDS.values()))


def load_clothoaqa(folder: Path) -> list[Item]:
    """Load FOLDER/clothoAQA_eval.json ([{id, audio, conversations}]) and the audio files that it names, or
    FOLDER/clotho_aqa_test.csv (file_name, QuestionText, answer, confidence) and audio_files/.
    """
    path = folder / "clothoAQA_eval.json"
    if path.is_file():
        return [
            _word_item(
                f"{place}", find_named(folder, need(entry, "audio", path), *AUDIO_FILES), *read_turns(entry, path)
            )
            for place, entry in enumerate(read_json_file(path))
        ]
    path = folder / "clotho_aqa_test.csv"
    return [
        _word_item(
            f"{place}",
            folder / "audio_files" / need(row, "file_name", path),
            need(row, "QuestionText", path),
            need(row, "answer", path),
        )
        for place, row in enumerate(csv.DictReader(read_text_file(path).splitlines()))
    ]


def _word_item(name: str, audio: Path, question: str, answer: str) -> Item:
    form = "yes/no" if answer.lower() in ("yes", "no") else "word"
    wrapped = f"Question: {question}\nAnswer the question using a single word."
    return Item(name, "audio", audio, (wrapped,), answer, groups={"form": form})


def read_clothoaqa(item: Item, answers: Sequence[str]) -> Verdict:
    """A full stop after the word is accepted overall, but not in the table of yes/no questions, as in the reference."""
    verdict = read_word(item, answers)
    if item.groups["form"] == "word":
        return verdict
    return replace(verdict, right_in={"form": answers[0].lower() == item.truth.lower()})


def read_word(item: Item, answers: Sequence[str]) -> Verdict:
    """Right if the answer equals the expected word."""
    return Verdict(answers[0], ends_equal(answers[0], item.truth))


def load_tut2017(folder: Path) -> list[Item]:
    """Load FOLDER/tut2017_eval.jsonl ({audio, gt} per line), or meta.txt (file and scene, separated by tabs), and the
    audio files that it names.
    """
    path = folder / "tut2017_eval.jsonl"
    if path.is_file():
        return _class_items(folder, path, SCENE_QUESTION, SCENES)
    path = folder / "meta.txt"
    rows = [line.split("\t") for line in read_text_file(path).splitlines() if line.strip()]
    items = []
    for row in rows:
        label = _SCENE_LABELS.get(row[1], row[1].replace("_", " ")) if len(row) > 1 else ""
        if label not in SCENES:
            raise BadSample(f"{path}: the row {row} has none of the scenes {', '.join(SCENES)}")
        items.append(_class_item(row[0], folder / row[0], SCENE_QUESTION, label, SCENES))
    return items


def load_vocalsound(folder: Path) -> list[Item]:
    """Load FOLDER/vocalsound_eval.jsonl ({audio, gt} per line), or te.json ({"data": [{wav, labels}]}, labels as
    AudioSet ids), and audio_16k/.
    """
    labels = tuple(VOCAL_SOUNDS.values())
    path = folder / "vocalsound_eval.jsonl"
    if path.is_file():
        return _class_items(folder, path, VOCAL_QUESTION, labels, "audio_16k")
    path = folder / "te.json"
    items = []
    for entry in need(read_json_file(path), "data", path):
        label, wav = need(entry, "labels", path), need(entry, "wav", path)
        if label not in VOCAL_SOUNDS:
            raise BadSample(f"{path}: label {label!r} of {wav} is none of {', '.join(VOCAL_SOUNDS)}")
        media = folder / "audio_16k" / Path(wav).name
        items.append(_class_item(Path(wav).stem, media, VOCAL_QUESTION, VOCAL_SOUNDS[label], labels))
    return items


def _class_items(folder: Path, path: Path, question: str, labels: Sequence[str], *below: str) -> list[Item]:
    return [
        _class_item(
            f"{place}",
            find_named(folder, need(entry, "audio", path), *below),
            question,
            need(entry, "gt", path),
            labels,
        )
        for place, entry in enumerate(read_json_lines(path))
    ]


def _class_item(name: str, audio: Path, question: str, label: str, labels: Sequence[str]) -> Item:
    return Item(name, "audio", audio, (question,), label, tuple(labels), {"label": label})


def read_class(item: Item, answers: Sequence[str]) -> Verdict:
    """Right if the answer contains the label, or is the label's letter, with or without brackets."""
    text, truth = answers[0].strip().upper(), item.truth.upper()
    letters = {form: label for i, label in enumerate(item.options) for form in (letter_of(i), f"({letter_of(i)})")}
    return Verdict(answers[0], truth in text or truth in letters.get(text, "").upper())


def load_music_avqa(folder: Path) -> list[Item]:
    """Load FOLDER/AVQA_music_test.json ([{video, conversations}]) and the videos that it names, or avqa-test.json and
    videos/<video_id>.mp4; the latter's answers are under the key `anser`, as published.
    """
    path = folder / "AVQA_music_test.json"
    if path.is_file():
        return load_annotated(folder, path, "MUSIC-AVQA-videos", "videos")
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
    Task("clothoaqa", "ClothoAQA (audio)", load_clothoaqa, read_clothoaqa),
    Task("tut2017", "TUT2017 (audio)", load_tut2017, read_class),
    Task("vocalsound", "VocalSound (audio)", load_vocalsound, read_class),
    Task("music-avqa", "MUSIC-AVQA (audio)", load_music_avqa, read_word),
]
