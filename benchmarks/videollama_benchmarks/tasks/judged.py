"""Open-ended benchmarks that a judge scores: ActivityNet-QA, MSVD-QA, Video-ChatGPT, MSVC, AVSD, AVSSD, Clotho."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from videollama_benchmarks.tasks.items import (
    Item,
    JudgeQuestion,
    Task,
    find_video,
    load_annotated,
    need,
    read_json_file,
    read_text_file,
)
from videollama_core.protocol.errors import BadSample

# Video-ChatGPT's files, and the aspects that the judge scores.
VIDEO_CHATGPT = {
    "generic_qa.json": ("correctness", "detail", "context"),
    "temporal_qa.json": ("temporal",),
    "consistency_qa.json": ("consistency",),
}
AVSSD_QUESTION = "Identify the event in the video."
CAPTION_ASPECTS = ("correctness", "detailedness")


def load_activitynet(folder: Path) -> list[Item]:
    """Load FOLDER/test_q.json, test_a.json and all_test/v_<video_name>.mp4, or without the v_."""
    return _questions_and_answers(folder, folder / "all_test")


def load_msvd(folder: Path) -> list[Item]:
    """Load FOLDER/test_q.json, test_a.json and videos/<video_name>.avi."""
    return _questions_and_answers(folder, folder / "videos")


def _questions_and_answers(folder: Path, videos: Path) -> list[Item]:
    questions, answers = folder / "test_q.json", folder / "test_a.json"
    truth = {need(entry, "question_id", answers): entry for entry in read_json_file(answers)}
    items = []
    for entry in read_json_file(questions):
        name, video = need(entry, "question_id", questions), need(entry, "video_name", questions)
        if name not in truth:
            raise BadSample(f"{answers} has no answer to question {name} of {questions}")
        items.append(
            Item(
                name=str(name),
                kind="video",
                media=find_video(videos, f"v_{video}", video),
                questions=(need(entry, "question", questions),),
                truth=need(truth[name], "answer", answers),
                groups={"type": str(truth[name]["type"])} if "type" in truth[name] else {},
            )
        )
    return items


def judge_answer(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    """Ask whether the answer is right, with a reply under `pred`."""
    return [JudgeQuestion("answer", _values(item, answers), "pred")]


def judge_sound_answer(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    """Ask whether the answer is right, with a reply under `binary_pred`."""
    return [JudgeQuestion("answer", _values(item, answers), "binary_pred")]


def _values(item: Item, answers: Sequence[str]) -> dict[str, str]:
    return {"question": item.questions[0], "answer": str(item.truth), "prediction": answers[0]}


def load_video_chatgpt(folder: Path) -> list[Item]:
    """Load FOLDER/{generic,temporal,consistency}_qa.json and Test_Videos/<video_name>.mp4."""
    items = []
    for file, aspects in VIDEO_CHATGPT.items():
        path = folder / file
        for place, entry in enumerate(read_json_file(path)):
            keys = ("Q1", "Q2") if "consistency" in aspects else ("Q",)
            items.append(
                Item(
                    name=f"{path.stem}/{place}",
                    kind="video",
                    media=find_video(folder / "Test_Videos", need(entry, "video_name", path)),
                    questions=tuple(need(entry, key, path) for key in keys),
                    truth=need(entry, "A", path),
                    options=aspects,
                )
            )
    return items


def judge_video_chatgpt(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    """One request per aspect of the item; for consistency, with both questions and answers."""
    values = _values(item, answers)
    if len(item.questions) == 2:
        values = {"answer": item.truth}
        for number, (question, answer) in enumerate(zip(item.questions, answers, strict=True), start=1):
            values |= {f"question_{number}": question, f"prediction_{number}": answer}
    return [JudgeQuestion(aspect, values) for aspect in item.options]


def load_msvc(folder: Path) -> list[Item]:
    """Load FOLDER/msvc.json or MSVC.json ({video_path, question, captions}) and the videos that it names."""
    path = next((path for path in (folder / "msvc.json", folder / "MSVC.json") if path.is_file()), folder / "msvc.json")
    items = []
    for place, entry in enumerate(read_json_file(path)):
        video = need(entry, "video_path", path)
        captions = need(entry, "captions", path)
        items.append(Item(f"{place}", "video", folder / video, (need(entry, "question", path),), captions))
    return items


def judge_msvc(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    """Compare with all captions at once, given as a list."""
    return [JudgeQuestion(aspect, _values(item, answers), "first") for aspect in CAPTION_ASPECTS]


def load_clotho(folder: Path) -> list[Item]:
    """Load FOLDER/clotho_captions_evaluation.csv (file_name, caption_1 to caption_5) and evaluation/.

    The reference has a judge for Clotho's captions, but no script that generates them: the question is from the audio example in
    its README.
    """
    path = folder / "clotho_captions_evaluation.csv"
    items = []
    for place, row in enumerate(csv.DictReader(read_text_file(path).splitlines())):
        captions = [need(row, f"caption_{number}", path) for number in range(1, 6)]
        audio = folder / "evaluation" / need(row, "file_name", path)
        items.append(Item(f"{place}", "audio", audio, ("Please describe the audio:",), captions))
    return items


def judge_clotho(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    """Compare with each caption separately; the item's score is the mean."""
    values = _values(item, answers)
    return [JudgeQuestion(aspect, {**values, "answer": text}) for aspect in CAPTION_ASPECTS for text in item.truth]


def load_avsd(folder: Path) -> list[Item]:
    """Load FOLDER/instruction_val.json ([{video, conversations}]) and the videos that it names, or avsd_test.json ({"dialogs":
    [{image_id, dialog: [{question, answer}]}]}) and videos/<image_id>.mp4.
    """
    path = folder / "instruction_val.json"
    if path.is_file():
        return load_annotated(folder, path, "Charades_v1_480")
    path = folder / "avsd_test.json"
    items = []
    for dialog in need(read_json_file(path), "dialogs", path):
        video = find_video(folder / "videos", need(dialog, "image_id", path))
        for place, turn in enumerate(need(dialog, "dialog", path)):
            question, answer = need(turn, "question", path), need(turn, "answer", path)
            items.append(Item(f"{dialog['image_id']}/{place}", "video+audio", video, (question,), answer))
    return items


def load_avssd(folder: Path) -> list[Item]:
    """Load FOLDER/avssd_test.json ([{video, conversations}]) and the videos that it names, or vggsound.csv (YouTube id,
    start second, label, split) and videos/<id>_<start with six digits>.mp4.
    """
    path = folder / "avssd_test.json"
    if path.is_file():
        items = load_annotated(folder, path, "VGGSound_final/video", "videos")
        return [replace(item, questions=(AVSSD_QUESTION,)) for item in items]
    path = folder / "vggsound.csv"
    items = []
    for row in csv.reader(read_text_file(path).splitlines()):
        if len(row) != 4:
            raise BadSample(f"{path}: a row has {len(row)} columns; id, start, label and split were expected")
        if row[3] == "test":
            stem = f"{row[0]}_{int(row[1]):06d}"
            items.append(Item(stem, "video+audio", find_video(folder / "videos", stem), (AVSSD_QUESTION,), row[2]))
    return items


TASKS = [
    Task("activitynet-qa", "ActivityNet-QA", load_activitynet, judge=judge_answer),
    Task("msvd-qa", "MSVD-QA", load_msvd, judge=judge_answer),
    Task("video-chatgpt", "Video-ChatGPT, 5 aspects", load_video_chatgpt, judge=judge_video_chatgpt),
    Task("msvc", "MSVC captions", load_msvc, judge=judge_msvc),
    Task("clotho", "Clotho captions (audio)", load_clotho, judge=judge_clotho),
    Task("avsd", "AVSD (audio)", load_avsd, judge=judge_sound_answer),
    Task("avssd", "AVSSD (audio)", load_avssd, judge=judge_sound_answer),
]
