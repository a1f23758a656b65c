"""Does a model say yes to what is not there? CMM, POPE, and the same asked about the synthetic world.

Layouts, prompts and the reading of answers are those of the published files and scorers: DAMO-NLP-SG/CMM
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
POPE_SUFFIX = " Please answer this question with one word."  # of VCD's evaluation; POPE itself names none
COLOURS, SHAPES = (
    ("red", "green", "blue", "yellow", "purple", "white"),
    ("circle", "square", "triangle", "cross", "star"),
)


def read_rows(path: Path) -> list[Any]:
    """A JSON list, or one object a line. Raises: BadSample."""
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
        raise BadSample(f"{path}: an answer is {value!r}; yes or no was wanted")
    return word


def load_cmm(folder: Path) -> list[Item]:
    """FOLDER/all_data_final_reorg.json and the media that it names, below FOLDER/reorg_raw_files.

    Where picture and audio are asked about together, the audio lies in a file of its own.
    """
    path = folder / CMM_FILE
    items = []
    for place, entry in enumerate(read_rows(path)):
        modality, question = need(entry, "modality", path), str(need(entry, "question", path)).strip()
        if modality not in CMM_KINDS:
            raise BadSample(
                f"{path}: entry {place} has the modality {modality!r}; wanted one of {', '.join(CMM_KINDS)}"
            )
        video, audio = (_cmm_media(folder, entry.get(key)) for key in ("video_path", "audio_path"))
        kind = CMM_KINDS[modality]
        media = audio if kind == "audio" else video
        if media is None:
            raise BadSample(f"{path}: entry {place} is about {modality} and names no such file")
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
    """Published names begin with ./ and say "None" where there is no file."""
    return None if name in (None, "", "None") else folder / str(name)


def read_cmm(item: Item, answers: Sequence[str]) -> Verdict:
    """Right if the truth stands within the first five characters: "Not sure" says no, and "I know" does."""
    return Verdict(answers[0], item.truth in answers[0].strip().lower()[:5])


def perception_and_resistance(results: Sequence[tuple[Item, Verdict]]) -> dict[str, float]:
    """Percent right of what is there, and of what is not; 0 where there is none, as the published scorer says."""
    shares = {}
    for name, truth in (("perception accuracy", "yes"), ("hallucination resistance", "no")):
        right = [bool(verdict.right) for item, verdict in results if item.truth == truth]
        shares[name] = round(100 * sum(right) / len(right), 2) if right else 0.0
    return shares


def export_cmm(results: list[tuple[Item, Verdict]], folder: Path) -> Path:
    """The file that the published scorer and the leaderboard take."""
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
    """FOLDER/coco_pope_{random,popular,adversarial}.json (or below output/coco), those that are there, and FOLDER/val2014."""
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
        raise BadSample(f"{folder} holds none of POPE's files; the first is coco_pope_{POPE_SPLITS[0]}.json")
    return items


def read_pope(item: Item, answers: Sequence[str]) -> Verdict:
    """No if one of the words No, no and not stands in the first sentence, else yes."""
    words = answers[0].partition(".")[0].replace(",", "").split(" ")
    said = "no" if {"No", "no", "not"} & set(words) else "yes"
    return Verdict(said, said == item.truth)


def precision_and_recall(results: Sequence[tuple[Item, Verdict]]) -> dict[str, float]:
    """In percent, of yes; 0 where nothing is divided."""
    said = [(verdict.prediction == "yes", item.truth == "yes") for item, verdict in results]
    hits, yes, true = sum(a and b for a, b in said), sum(a for a, _ in said), sum(b for _, b in said)
    shares = {
        "precision": hits / yes if yes else 0.0,
        "recall": hits / true if true else 0.0,
        "F1": 2 * hits / (yes + true) if yes + true else 0.0,
        "yes ratio": yes / len(said),
    }
    return {name: round(100 * share, 2) for name, share in shares.items()}


def load_shapes_probing(folder: Path) -> list[Item]:
    """The held-out clips of the synthetic world: each thing by its colour and by its shape, once as it is, once as it is not.

    What is in a clip is read from its description; FOLDER is that of the benchmark `shapes`.
    """
    path = folder / "held_out.json"
    things: dict[str, tuple[str, dict[str, str]]] = {}
    for entry in read_json_file(path):
        if need(entry, "form", path) == "description":
            kind = "image" if "image" in entry else "video"
            words = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", entry["conversations"][1]["value"])
            things[need(entry, kind, path)] = (kind, {shape: colour for colour, shape in words})
    items = []
    for media, (kind, seen) in things.items():
        for shape, colour in seen.items():
            random = Random(f"{media} {shape}")
            other_colour = random.choice([one for one in COLOURS if one not in seen.values()])
            other_shape = random.choice([one for one in SHAPES if one not in seen])
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
    """The world's answers say what is seen and then the verdict: "It is red, so no."."""
    found = re.findall(r"\b(yes|no)\b", answers[0].lower())
    return Verdict(answers[0], bool(found) and found[-1] == item.truth)


TASKS = [
    Task("cmm", "CMM, hallucinations of vision, audio and language", load_cmm, read_cmm, export=export_cmm,
         measure=perception_and_resistance),
    Task("pope", "POPE, objects of COCO", load_pope, read_pope, measure=precision_and_recall, max_new_tokens=1024),
    Task("shapes-probing", "what is and is not there, in the synthetic world", load_shapes_probing, read_shapes_probing,
         measure=perception_and_resistance),
]  # fmt: skip
