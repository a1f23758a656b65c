"""Multiple-choice benchmarks: MVBench, EgoSchema, Perception Test."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollama_benchmarks.tasks.answers import (
    FALLBACK,
    find_letter,
    find_option,
    find_piece,
    letter_of,
    letters_of,
    without_answer,
)
from videollama_benchmarks.tasks.items import Item, Task, Verdict, find_video, need, read_json_file
from videollama_core.protocol.errors import BadSample

LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly and only give the best option."
# MVBench's tasks: file below json/, folder below video/, whether the question is about a segment, whether media are folders of
# frames.
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
    """Load FOLDER/json/*.json and FOLDER/video/...; tasks without a file are skipped. Raises: BadSample if there is no file."""
    items = []
    for task, (file, videos, bounded, _) in MVBENCH.items():
        path = folder / "json" / file
        if not path.is_file():
            continue
        for place, entry in enumerate(read_json_file(path)):
            options = need(entry, "candidates", path)
            answer = need(entry, "answer", path)
            places = [index for index, option in enumerate(options) if option == answer]
            items.append(
                Item(
                    name=f"{task}/{place}",
                    kind="video",
                    media=folder / "video" / videos / need(entry, "video", path),
                    questions=(
                        f"Question: {need(entry, 'question', path)}\nOptions:\n{_options(options)}{LETTER_INSTRUCTION}",
                    ),
                    truth=places[-1]
                    if places
                    else -1,  # without a right candidate every answer is wrong, as in the reference
                    options=tuple(options),
                    groups={"task": task},
                    start=need(entry, "start", path) if bounded else None,
                    end=need(entry, "end", path) if bounded else None,
                )
            )
    if not items:
        raise BadSample(f"{folder}/json has none of MVBench's files; the first is {MVBENCH['Action Sequence'][0]}")
    return items


def read_mvbench(item: Item, answers: Sequence[str]) -> Verdict:
    """Take the letter; without any letter, the first option in the text, or else the third."""
    letters = letters_of(item.options)
    piece = find_piece(answers[0], letters, commas=True)
    if piece is None:
        index = find_option(answers[0], [(option,) for option in item.options])
    else:
        index = letters.index(piece) if piece in tuple(letters) else None
    return _verdict(FALLBACK if index is None else index, item.truth)


def _verdict(index: int, truth: int | None) -> Verdict:
    return Verdict(letter_of(index), None if truth is None else index == truth, extra={"index": index})


def load_egoschema(folder: Path) -> list[Item]:
    """Load FOLDER/questions.json and FOLDER/good_clips_git/<q_uid>.mp4."""
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
    """Take the letter, or else the third option; whether it is right is only known to the benchmark's own scorer."""
    piece = find_piece(answers[0], "ABCDE")
    return _verdict("ABCDE".index(piece) if piece in tuple("ABCDE") else FALLBACK, None)


def export_egoschema(results: list[tuple[Item, Verdict]], folder: Path) -> Path:
    """Write the submission file of EgoSchema."""
    path = folder / "egoschema_submission.csv"
    rows = [f"{item.name}, {verdict.extra['index']}\n" for item, verdict in results]
    path.write_text("".join(["q_uid, answer\n", *rows]), "utf-8")
    return path


def load_perception_test(folder: Path) -> list[Item]:
    """Load FOLDER/mc_question_test.json (or _valid, _train) and FOLDER/videos."""
    paths = [folder / f"mc_question_{split}.json" for split in ("test", "valid", "train")]
    path = next((path for path in paths if path.is_file()), paths[0])
    items = []
    for name, entry in read_json_file(path).items():
        for question in need(entry, "mc_question", path):
            options = need(question, "options", path)[:3]
            if len(options) < 3:
                raise BadSample(f"{path}: a question about {name} has {len(options)} options; three were expected")
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


def read_perception(item: Item, answers: Sequence[str]) -> Verdict:
    """Take the letter; without any letter, the option that equals the answer, or else the third."""
    letter = find_letter(answers[0], "ABC")
    if letter:
        return _verdict("ABC".index(letter), item.truth)
    text, options = without_answer(answers[0]).lower(), [option.lower() for option in item.options]
    return _verdict(options.index(text) if text in options else FALLBACK, item.truth)


def export_perception_test(results: list[tuple[Item, Verdict]], folder: Path) -> Path:
    """Write the submission file of Perception Test."""
    by_video: dict[str, list[dict[str, Any]]] = {}
    for item, verdict in results:
        video, number = item.name.rsplit("/", 1)
        index = verdict.extra["index"]
        by_video.setdefault(video, []).append({"id": int(number), "answer_id": index, "answer": item.options[index]})
    path = folder / "perception_test_submission.json"
    path.write_text(json.dumps(by_video, indent=1), "utf-8")
    return path


TASKS = [
    Task("mvbench", "MVBench, 20 tasks", load_mvbench, read_mvbench),
    Task("egoschema", "EgoSchema", load_egoschema, read_egoschema, export=export_egoschema),
    Task("perception-test", "Perception Test", load_perception_test, read_perception, export=export_perception_test),
]
