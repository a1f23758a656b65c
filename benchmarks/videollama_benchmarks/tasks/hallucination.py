"""Hallucination benchmarks, which ask yes/no questions about absent things: CMM, POPE, and one on the synthetic world.

File layouts, prompts and scoring are those of the published files and scorers: DAMO-NLP-SG/CMM
evaluation/calculate_score.py, AoiDragon/POPE evaluate.py.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from videollama_benchmarks.tasks.items import Item, Task, Verdict, need, read_json_file, read_text_file
from videollama_core.protocol.errors import BadSample

CMM_FILE = "all_data_final_reorg.json"
CMM_SUFFIX = " Answer with yes or no."
CMM_KINDS = {"visual": "video", "audio": "audio", "visual+audio": "video+audio"}
POPE_SPLITS = ("random", "popular", "adversarial")
POPE_SUFFIX = " Please answer this question with one word."  # as in VCD's evaluation; POPE itself has none
COLOURS, SHAPES = (
    ("red", "green", "blue", "yellow", "purple", "white"),
    ("circle", "square", "triangle", "cross", "star"),
)


def read_rows(path: Path) -> list[Any]:
    """Read a JSON list, or JSON lines. Raises: BadSample."""
    text = read_text_file(path)
    if text.lstrip().startswith("["):
        return read_json_file(path)
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise BadSample(f"{path}:{number} cannot be read as JSON: {error}") from error
    return rows


def _truth(value: Any, path: Path) -> str:
    word = str(value).strip().lower()
    if word not in ("yes", "no"):
        raise BadSample(f"{path}: an answer is {value!r}; yes or no was expected")
    return word


def load_cmm(folder: Path) -> list[Item]:
    """Load FOLDER/all_data_final_reorg.json and the media that it names, below FOLDER/reorg_raw_files.

    For questions about both video and audio, the audio is in a separate file.
    """
    path = folder / CMM_FILE
    items = []
    for place, entry in enumerate(read_rows(path)):
        modality, question = need(entry, "modality", path), str(need(entry, "question", path)).strip()
        if modality not in CMM_KINDS:
            raise BadSample(
                f"{path}: entry {place} has the modality {modality!r}; expected one of {', '.join(CMM_KINDS)}"
            )
        video, audio = (_cmm_media(folder, entry.get(key)) for key in ("video_path", "audio_path"))
        kind = CMM_KINDS[modality]
        media = audio if kind == "audio" else video
        if media is None:
            raise BadSample(f"{path}: entry {place} has the modality {modality}, but names no such file")
        sub_category = str(need(entry, "sub_category", path))
        groups = {"category": str(need(entry, "category", path)), "sub_category": sub_category, "modality": modality}
        if entry.get("granularity"):
            groups["granularity"] = f"{entry['granularity']}, {sub_category}"
        items.append(
            Item(
                name=str(place),
                kind=kind,
                media=media,
                questions=(question if question.endswith(CMM_SUFFIX.strip()) else question + CMM_SUFFIX,),
                truth=_truth(need(entry, "answer", path), path),
                groups=groups,
                sound=audio if kind == "video+audio" else None,
            )
        )
    return items


def _cmm_media(folder: Path, name: str | None) -> Path | None:
    """Published names begin with ./, and "None" stands for no file."""
    return None if name in (None, "", "None") else folder / str(name)


def read_cmm(item: Item, answers: Sequence[str]) -> Verdict:
    """Right if the truth occurs in the first five characters; so "Not sure" and "I know" both count as no."""
    return Verdict(answers[0], item.truth in answers[0].strip().lower()[:5])


def perception_and_resistance(results: Sequence[tuple[Item, Verdict]]) -> dict[str, float]:
    """Accuracy in percent on present and on absent things; 0 if there are none, as in the published scorer."""
    shares = {}
    for name, truth in (("perception accuracy", "yes"), ("hallucination resistance", "no")):
        right = [bool(verdict.right) for item, verdict in results if item.truth == truth]
        shares[name] = round(100 * sum(right) / len(right), 2) if right else 0.0
    return shares


def export_cmm(results: list[tuple[Item, Verdict]], folder: Path) -> Path:
    """Write the file for the published scorer and the leaderboard."""
    path = folder / "cmm_output.json"
    with path.open("w", encoding="utf-8") as file:
        for item, verdict in results:
            row = {
                **{key: item.groups[key] for key in ("category", "sub_category", "modality")},
                "granularity": item.groups.get("granularity", "").partition(",")[0] or None,
                "video_path": None if item.kind == "audio" else str(item.media),
                "audio_path": str(item.media) if item.kind == "audio" else item.sound and str(item.sound),
                "question": item.questions[0],
                "answer": item.truth,
                "pred": verdict.prediction,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def load_pope(folder: Path) -> list[Item]:
    """Load those of FOLDER/coco_pope_{random,popular,adversarial}.json (or below output/coco) that exist, and FOLDER/val2014."""
    items = []
    for split in POPE_SPLITS:
        name = f"coco_pope_{split}.json"
        path = next((path for path in (folder / name, folder / "output/coco" / name) if path.is_file()), None)
        if path is None:
            continue
        for entry in read_rows(path):
            items.append(
                Item(
                    name=f"{split}/{need(entry, 'question_id', path)}",
                    kind="image",
                    media=folder / "val2014" / str(need(entry, "image", path)),
                    questions=(str(need(entry, "text", path)) + POPE_SUFFIX,),
                    truth=_truth(need(entry, "label", path), path),
                    groups={"split": split},
                )
            )
    if not items:
        raise BadSample(f"{folder} has none of POPE's files; the first is coco_pope_{POPE_SPLITS[0]}.json")
    return items


def read_pope(item: Item, answers: Sequence[str]) -> Verdict:
    """No if the first sentence has one of the words No, no and not, else yes."""
    words = answers[0].partition(".")[0].replace(",", "").split(" ")
    prediction = "no" if {"No", "no", "not"} & set(words) else "yes"
    return Verdict(prediction, prediction == item.truth)


def precision_and_recall(results: Sequence[tuple[Item, Verdict]]) -> dict[str, float]:
    """Metrics of the class "yes" in percent; 0 if a denominator is 0."""
    pairs = [(verdict.prediction == "yes", item.truth == "yes") for item, verdict in results]
    hits, yes, true = sum(a and b for a, b in pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs)
    shares = {
        "precision": hits / yes if yes else 0.0,
        "recall": hits / true if true else 0.0,
        "F1": 2 * hits / (yes + true) if yes + true else 0.0,
        "yes ratio": yes / len(pairs),
    }
    return {name: round(100 * share, 2) for name, share in shares.items()}


def load_shapes_probing(folder: Path) -> list[Item]:
    """Ask about each object's colour and shape in the held-out clips of the synthetic world, with a true and a false one each.

    The objects of a clip are read from its description; FOLDER is that of the benchmark `shapes`.
    """
    path = folder / "held_out.json"
    objects: dict[str, tuple[str, dict[str, str]]] = {}  # media -> (kind, shape -> colour)
    for entry in read_json_file(path):
        if need(entry, "form", path) == "description":
            kind = "image" if "image" in entry else "video"
            words = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", entry["conversations"][1]["value"])
            objects[need(entry, kind, path)] = (kind, {shape: colour for colour, shape in words})
    items = []
    for media, (kind, colour_of) in objects.items():
        for shape, colour in colour_of.items():
            random = Random(f"{media} {shape}")
            other_colour = random.choice([absent for absent in COLOURS if absent not in colour_of.values()])
            other_shape = random.choice([absent for absent in SHAPES if absent not in colour_of])
            for topic, question, truth in (
                ("colour", f"Is the {shape} {colour}?", "yes"),
                ("colour", f"Is the {shape} {other_colour}?", "no"),
                ("shape", f"Is the {colour} thing a {shape}?", "yes"),
                ("shape", f"Is the {colour} thing a {other_shape}?", "no"),
            ):
                name = f"{Path(media).stem}: {question}"
                items.append(Item(name, kind, folder / media, (question,), truth, groups={"topic": topic}))
    return items


def read_shapes_probing(item: Item, answers: Sequence[str]) -> Verdict:
    """Take the last yes or no: answers of the synthetic world first describe and then conclude ("It is red, so no.")."""
    matches = re.findall(r"\b(yes|no)\b", answers[0].lower())
    return Verdict(answers[0], bool(matches) and matches[-1] == item.truth)


TASKS = [
    Task("cmm", "CMM, hallucination of vision, audio and language", load_cmm, read_cmm, export=export_cmm,
         measure=perception_and_resistance),
    Task("pope", "POPE, COCO objects", load_pope, read_pope, measure=precision_and_recall, max_new_tokens=1024),
    Task("shapes-probing", "yes/no questions about the synthetic world", load_shapes_probing, read_shapes_probing,
         measure=perception_and_resistance),
]  # fmt: skip
