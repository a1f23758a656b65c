"""Free answers that a judge reads: ActivityNet-QA, MSVD-QA, Video-ChatGPT, MSVC, AVSD, AVSSD."""

import csv
from collections.abc import Sequence
from pathlib import Path

from videollama_benchmarks.items import Item, JudgeQuestion, Task, find_video, need, read_json_file, read_text_file
from videollama_core.protocol.errors import BadSample

_QA = (
    "You compare the answer of a video question answering system with the correct one. Synonyms and paraphrases are "
    "right; what matters is the meaning."
)
# Aspects of Video-ChatGPT's benchmark: file, and what the judge looks at.
VIDEO_CHATGPT = {
    "correctness": ("generic_qa.json", "whether its facts agree with the correct answer and nothing is made up"),
    "detail": ("generic_qa.json", "whether it is complete and specific, as far as the correct answer goes"),
    "context": ("generic_qa.json", "whether it fits the overall theme and context of the video"),
    "temporal": ("temporal_qa.json", "whether the order and times of events agree with the correct answer"),
    "consistency": ("consistency_qa.json", "whether the two answers to the same question in other words agree"),
}
MSVC_ASPECTS = {
    "correctness": "whether the description agrees with the reference descriptions and invents nothing",
    "detailedness": "how completely the description covers what the reference descriptions mention",
}


def load_activitynet(folder: Path) -> list[Item]:
    """FOLDER/test_q.json, test_a.json and all_test/v_<video_name>.mp4."""
    return _questions_and_answers(folder, folder / "all_test", "v_")


def load_msvd(folder: Path) -> list[Item]:
    """FOLDER/test_q.json, test_a.json and videos/<video_name>.avi."""
    return _questions_and_answers(folder, folder / "videos", "")


def _questions_and_answers(folder: Path, videos: Path, prefix: str) -> list[Item]:
    questions, answers = folder / "test_q.json", folder / "test_a.json"
    truth = {need(entry, "question_id", answers): entry for entry in read_json_file(answers)}
    items = []
    for entry in read_json_file(questions):
        name = need(entry, "question_id", questions)
        if name not in truth:
            raise BadSample(f"{answers} has no answer to question {name} of {questions}")
        items.append(
            Item(
                name=str(name),
                kind="video",
                media=find_video(videos, prefix + need(entry, "video_name", questions)),
                questions=(need(entry, "question", questions),),
                truth=need(truth[name], "answer", answers),
                groups={"type": str(truth[name]["type"])} if "type" in truth[name] else {},
            )
        )
    return items


def judge_answer(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    content = f"Question: {item.questions[0]}\nCorrect answer: {item.truth}\nPredicted answer: {answers[0]}"
    return [JudgeQuestion("answer", _QA, content, with_verdict=True)]


def load_video_chatgpt(folder: Path) -> list[Item]:
    """FOLDER/{generic,temporal,consistency}_qa.json and Test_Videos/<video_name>.mp4."""
    items = []
    files = {file: [aspect for aspect, entry in VIDEO_CHATGPT.items() if entry[0] == file] for file in _FILES}
    for file, aspects in files.items():
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
                    options=tuple(aspects),
                )
            )
    return items


_FILES = ("generic_qa.json", "temporal_qa.json", "consistency_qa.json")


def judge_video_chatgpt(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    lines = [f"Correct answer: {item.truth}"]
    for number, (question, answer) in enumerate(zip(item.questions, answers, strict=True), start=1):
        mark = f" {number}" if len(item.questions) > 1 else ""
        lines += [f"Question{mark}: {question}", f"Predicted answer{mark}: {answer}"]
    return [
        JudgeQuestion(
            aspect,
            f"You rate the answer of a video question answering system: {VIDEO_CHATGPT[aspect][1]}.",
            "\n".join(lines),
            with_verdict=False,
        )
        for aspect in item.options
    ]


def load_msvc(folder: Path) -> list[Item]:
    """FOLDER/MSVC.json ({video_path, question, captions}) and the videos that it names."""
    path = folder / "MSVC.json"
    items = []
    for place, entry in enumerate(read_json_file(path)):
        video = need(entry, "video_path", path)
        captions = need(entry, "captions", path)
        items.append(Item(f"{place}", "video", folder / video, (need(entry, "question", path),), captions))
    return items


def judge_msvc(item: Item, answers: Sequence[str]) -> list[JudgeQuestion]:
    references = "\n".join(f"Reference description: {caption}" for caption in item.truth)
    content = f"{references}\nPredicted description: {answers[0]}"
    return [
        JudgeQuestion(aspect, f"You rate a video description: {what}.", content, with_verdict=False)
        for aspect, what in MSVC_ASPECTS.items()
    ]


def load_avsd(folder: Path) -> list[Item]:
    """FOLDER/avsd_test.json ({"dialogs": [{image_id, dialog: [{question, answer}]}]}) and videos/<image_id>.mp4."""
    path = folder / "avsd_test.json"
    items = []
    for dialog in need(read_json_file(path), "dialogs", path):
        video = find_video(folder / "videos", need(dialog, "image_id", path))
        for place, turn in enumerate(need(dialog, "dialog", path)):
            question, answer = need(turn, "question", path), need(turn, "answer", path)
            items.append(Item(f"{dialog['image_id']}/{place}", "video+audio", video, (question,), answer))
    return items


def load_avssd(folder: Path) -> list[Item]:
    """FOLDER/vggsound.csv (YouTube id, start second, label, split) and videos/<id>_<start with six digits>.mp4."""
    path = folder / "vggsound.csv"
    items = []
    for row in csv.reader(read_text_file(path).splitlines()):
        if len(row) != 4:
            raise BadSample(f"{path}: a row holds {len(row)} columns; id, start, label and split were wanted")
        if row[3] == "test":
            stem = f"{row[0]}_{int(row[1]):06d}"
            video = find_video(folder / "videos", stem)
            items.append(Item(stem, "video+audio", video, ("Identify the event in the video.",), row[2]))
    return items


TASKS = [
    Task("activitynet-qa", "ActivityNet-QA", load_activitynet, judge=judge_answer, max_new_tokens=256),
    Task("msvd-qa", "MSVD-QA", load_msvd, judge=judge_answer, max_new_tokens=256),
    Task(
        "video-chatgpt", "Video-ChatGPT, 5 aspects", load_video_chatgpt, judge=judge_video_chatgpt, max_new_tokens=1024
    ),
    Task("msvc", "MSVC captions", load_msvc, judge=judge_msvc, max_new_tokens=1024),
    Task("avsd", "AVSD (sound)", load_avsd, judge=judge_answer, max_new_tokens=256),
    Task("avssd", "AVSSD (sound)", load_avssd, judge=judge_answer, max_new_tokens=256),
]
