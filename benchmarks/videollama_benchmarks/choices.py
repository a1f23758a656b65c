"""Multiple choice: MVBench, EgoSchema, Perception Test, VideoMME."""

import csv
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from videollama_benchmarks.answers import choose_option, find_letter, find_option, letter_of
from videollama_benchmarks.items import Item, Task, Verdict, find_video, need, read_json_file
from videollama_core.protocol.errors import BadSample

LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly and only give the best option."
# MVBench's tasks: file below json/, folder below video/, whether a part of the video is meant, whether it is a folder
# of frames.
MVBENCH = {
    "Action Sequence": ("action_sequence.json", "star/Charades_v1_480", True, False),
    "Action Prediction": ("action_prediction.json", "star/Charades_v1_480", True, False),
    "Action Antonym": ("action_antonym.json", "ssv2_video", False, False),
    "Fine-grained Action": ("fine_grained_action.json", "Moments_in_Time_Raw/videos", False, False),
    "Unexpected Action": ("unexpected_action.json", "FunQA_test/test", False, False),
    "Object Existence": ("object_existence.json", "clevrer/video_validation", False, False),
    "Object Interaction": ("object_interaction.json", "star/Charades_v1_480", True, False),
    "Object Shuffle": ("object_shuffle.json", "perception/videos", False, False),
    "Moving Direction": ("moving_direction.json", "clevrer/video_validation", False, False),
    "Action Localization": ("action_localization.json", "sta/sta_video", True, False),
    "Scene Transition": ("scene_transition.json", "scene_qa/video", False, False),
    "Action Count": ("action_count.json", "perception/videos", False, False),
    "Moving Count": ("moving_count.json", "clevrer/video_validation", False, False),
    "Moving Attribute": ("moving_attribute.json", "clevrer/video_validation", False, False),
    "State Change": ("state_change.json", "perception/videos", False, False),
    "Fine-grained Pose": ("fine_grained_pose.json", "nturgbd", False, False),
    "Character Order": ("character_order.json", "perception/videos", False, False),
    "Egocentric Navigation": ("egocentric_navigation.json", "vlnqa", False, False),
    "Episodic Reasoning": ("episodic_reasoning.json", "tvqa/frames_fps3_hq", True, True),
    "Counterfactual Inference": ("counterfactual_inference.json", "clevrer/video_validation", False, False),
}


def _options(options: Sequence[str]) -> str:
    return "".join(f"({letter_of(index)}) {option}\n" for index, option in enumerate(options))


def load_mvbench(folder: Path) -> list[Item]:
    """FOLDER/json/*.json and FOLDER/video/...; tasks whose file is missing are left out, but not all."""
    items = []
    for task, (file, videos, bounded, _) in MVBENCH.items():
        path = folder / "json" / file
        if not path.is_file():
            continue
        for place, entry in enumerate(read_json_file(path)):
            options = need(entry, "candidates", path)
            answer = need(entry, "answer", path)
            if answer not in options:
                raise BadSample(f"{path}: the answer {answer!r} of entry {place} is none of its candidates")
            items.append(
                Item(
                    name=f"{task}/{place}",
                    kind="video",
                    media=folder / "video" / videos / need(entry, "video", path),
                    questions=(
                        f"Question: {need(entry, 'question', path)}\nOptions:\n{_options(options)}{LETTER_INSTRUCTION}",
                    ),
                    truth=options.index(answer),
                    options=tuple(options),
                    groups={"task": task},
                    start=need(entry, "start", path) if bounded else None,
                    end=need(entry, "end", path) if bounded else None,
                )
            )
    if not items:
        raise BadSample(f"{folder}/json holds none of MVBench's files; the first is {MVBENCH['Action Sequence'][0]}")
    return items


def read_choice(item: Item, answers: Sequence[str]) -> Verdict:
    chosen = choose_option(answers[0], item.options)
    return Verdict(letter_of(chosen), None if item.truth is None else chosen == item.truth, extra={"index": chosen})


def load_egoschema(folder: Path) -> list[Item]:
    """FOLDER/questions.json and FOLDER/good_clips_git/<q_uid>.mp4."""
    path = folder / "questions.json"
    items = []
    for entry in read_json_file(path):
        name = need(entry, "q_uid", path)
        options = [need(entry, f"option {index}", path) for index in range(5)]
        question = (
            "Select the best answer to the following multiple-choice question based on the video.\n"
            f"{need(entry, 'question', path)}\nOptions:\n{_options(options)}{LETTER_INSTRUCTION} The best answer is: "
        )
        items.append(
            Item(name, "video", find_video(folder / "good_clips_git", name), (question,), None, tuple(options))
        )
    return items


def read_egoschema(item: Item, answers: Sequence[str]) -> Verdict:
    letter = find_letter(answers[0], "ABCDE") or "C"
    return Verdict(letter, extra={"index": ord(letter) - ord("A")})


def export_egoschema(results: list[tuple[Item, Verdict]], folder: Path) -> Path:
    path = folder / "egoschema_submission.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["q_uid", "answer"])
        writer.writerows([item.name, verdict.extra["index"]] for item, verdict in results)
    return path


def load_perception_test(folder: Path) -> list[Item]:
    """FOLDER/mc_question_test.json (or _valid, _train) and FOLDER/videos."""
    found = [folder / f"mc_question_{split}.json" for split in ("test", "valid", "train")]
    path = next((path for path in found if path.is_file()), found[0])
    items = []
    for name, entry in read_json_file(path).items():
        for question in need(entry, "mc_question", path):
            options = need(question, "options", path)
            text = f"Question: {need(question, 'question', path)}\nOptions:\n{_options(options)}{LETTER_INSTRUCTION}"
            items.append(
                Item(
                    name=f"{name}/{need(question, 'id', path)}",
                    kind="video",
                    media=find_video(folder / "videos", name),
                    questions=(text,),
                    truth=question.get("answer_id"),
                    options=tuple(options),
                    groups={key: str(question[key]) for key in ("area", "reasoning") if key in question},
                )
            )
    return items


def export_perception_test(results: list[tuple[Item, Verdict]], folder: Path) -> Path:
    by_video: dict[str, list[dict[str, Any]]] = {}
    for item, verdict in results:
        video, number = item.name.rsplit("/", 1)
        index = verdict.extra["index"]
        by_video.setdefault(video, []).append({"id": int(number), "answer_id": index, "answer": item.options[index]})
    path = folder / "perception_test_submission.json"
    path.write_text(json.dumps(by_video, indent=1), "utf-8")
    return path


def read_videomme_file(path: Path) -> list[dict[str, Any]]:
    """The published parquet: one row per question."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BadSample("VideoMME is published as parquet; pip install 'videollama2-service[eval]'") from error
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise BadSample(f"{path} cannot be read as parquet: {error}") from error


def load_videomme(folder: Path) -> list[Item]:
    """FOLDER/videomme/*.parquet or FOLDER/*.parquet, and FOLDER/videos/<videoID>.mp4."""
    return _videomme(folder, subtitles=False)


def load_videomme_subtitles(folder: Path) -> list[Item]:
    """Likewise, with FOLDER/subtitles/<videoID>.srt."""
    return _videomme(folder, subtitles=True)


def _videomme(folder: Path, subtitles: bool) -> list[Item]:
    paths = sorted([*folder.glob("*.parquet"), *folder.glob("videomme/*.parquet")])
    if not paths:
        raise BadSample(f"{folder} holds no parquet file of VideoMME (test-00000-of-00001.parquet)")
    items = []
    for row in [row for path in paths for row in read_videomme_file(path)]:
        path, name = paths[0], need(row, "videoID", paths[0])
        video = find_video(folder / "videos", name)
        question = (
            "Select the best answer to the following multiple-choice question based on the video. "
            "Respond with only the letter (A, B, C, or D) of the correct option.\n"
            f"{need(row, 'question', path)}\n" + "\n".join(need(row, "options", path)) + "\n"
            f"{LETTER_INSTRUCTION} The best answer is: "
        )
        srt = folder / "subtitles" / f"{name}.srt"
        if subtitles and srt.is_file():
            lines = "\n".join(shown_subtitles(srt.read_text("utf-8", "replace"), *video_length(video)))
            question = f"This video's subtitles are listed below:\n{lines}\n{question}"
        items.append(
            Item(
                name=need(row, "question_id", path),
                kind="video",
                media=video,
                questions=(question,),
                truth=need(row, "answer", path),
                options=tuple(re.sub(r"^[A-D]\.\s*", "", option) for option in row["options"]),
                groups={key: str(row.get(key)) for key in ("domain", "sub_category", "task_type", "duration")},
            )
        )
    return items


def read_videomme(item: Item, answers: Sequence[str]) -> Verdict:
    letter = find_letter(answers[0], "ABCD")
    if letter is None:
        found = find_option(answers[0], item.options, digits_as_words=True)
        letter = "C" if found is None else letter_of(found)
    return Verdict(letter, letter == item.truth)


def video_length(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second, as the container states them."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            seconds = float(container.duration or 0) / 1e6
            return stream.frames or round(seconds * rate), rate
    except (OSError, IndexError, av.FFmpegError) as error:
        raise BadSample(f"{path} cannot be opened for its length: {error}") from error


def subtitle_frames(num_available: int, num_frames: int = 16) -> list[int]:
    """Frames whose moments pick the subtitles: another rule than the model's own frames (boundaries rounded first)."""
    edge = (num_available - 1) / num_frames
    bounds = [int(np.round(edge * index)) for index in range(num_frames + 1)]
    return [(low + high) // 2 for low, high in pairwise(bounds)]


_CUE = re.compile(
    r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})[^\n]*\n(.*?)(?=\n\s*\n|\Z)", re.DOTALL
)


def shown_subtitles(srt: str, num_available: int, rate: float) -> list[str]:
    """Lines on screen at the sampled moments, in order, each once."""
    cues = []
    for found in _CUE.finditer(srt.replace("\r\n", "\n")):
        h, m, s, ms, h2, m2, s2, ms2 = (int(value) for value in found.groups()[:8])
        text = " ".join(re.sub(r"<[^>]+>", "", found[9]).split())
        cues.append((3600 * h + 60 * m + s + ms / 1000, 3600 * h2 + 60 * m2 + s2 + ms2 / 1000, text))
    moments = [index / rate for index in subtitle_frames(num_available)] if num_available else []
    shown = [text for moment in moments for start, end, text in cues if start <= moment <= end and text]
    return list(dict.fromkeys(shown))


TASKS = [
    Task("mvbench", "MVBench, 20 tasks", load_mvbench, read_choice),
    Task("egoschema", "EgoSchema", load_egoschema, read_egoschema, export=export_egoschema),
    Task("perception-test", "Perception Test", load_perception_test, read_choice, export=export_perception_test),
    Task("videomme", "VideoMME without subtitles", load_videomme, read_videomme),
    Task("videomme-subtitles", "VideoMME with subtitles", load_videomme_subtitles, read_videomme),
]
