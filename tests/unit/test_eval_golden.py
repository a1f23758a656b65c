"""Every evaluation against the reference's own scripts: prompts, parsed answers and scores recorded in tests/golden/evaluation."""

import json
import re

import pytest

from conftest import GOLDEN, MEDIA
from unit.test_eval_run import Endpoint
from videollama_benchmarks import run
from videollama_benchmarks.cli import TASKS
from videollama_benchmarks.judge import Judge
from videollama_benchmarks.judge_prompts import OWN, JudgePrompt
from videollama_benchmarks.report import summarise

CHOICES = ("mvbench", "egoschema", "perception-test")
AUDIO = ("clothoaqa", "tut2017", "vocalsound", "music-avqa")
JUDGED = ("activitynet-qa", "video-chatgpt", "msvc", "clotho", "avsd", "avssd")


def recorded(name):
    return json.loads((GOLDEN / f"evaluation/{name}.json").read_text("utf-8"))


def lay_out(golden, folder):
    """Rebuilds the benchmark's folder as the reference read it."""
    for name, content in golden["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(content), path)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(entry) + "\n" for entry in content), "utf-8")
        else:
            path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())
    media = golden["media"]
    for name in media:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((MEDIA / media[name]).read_bytes() if isinstance(media, dict) else b"")
    return folder


def load(name, folder):
    golden = recorded(name)
    items = TASKS[name].load(lay_out(golden, folder))
    return golden, items


def check_questions(items, asked, folder):
    """Item by item, in order: words, media, bounds and kind."""
    pairs = [(item, question) for item in items for question in item.questions]
    assert len(pairs) == len(asked) >= 8
    for (item, question), wanted in zip(pairs, asked, strict=True):
        assert question == wanted["prompt"]
        assert item.media == folder / wanted["media"]
        assert (item.start, item.end) == (wanted.get("start"), wanted.get("end"))
        assert item.kind == ("video+audio" if wanted.get("sound") else wanted.get("modal", "video"))
    assert len({item.name for item in items}) == len(items)


def verdicts(name, items, asked):
    read = TASKS[name].read
    return [(item, read(item, [wanted["answer"]])) for item, wanted in zip(items, asked, strict=True)]


@pytest.mark.parametrize("name", [*CHOICES, *AUDIO, *JUDGED])
def test_questions_equal_the_references(name, tmp_path):
    golden, items = load(name, tmp_path)
    check_questions(items, golden["asked"], tmp_path)
    assert TASKS[name].max_new_tokens == 2048


def test_mvbench_answers_are_parsed_as_in_the_reference(tmp_path):
    golden, items = load("mvbench", tmp_path)
    results = verdicts("mvbench", items, golden["asked"])
    for (item, verdict), wanted in zip(results, golden["asked"], strict=True):
        assert (verdict.extra["index"], item.truth) == (wanted["index"], wanted["truth"]), wanted
        assert item.groups["task"] == wanted["task"]
    summary = summarise(results)
    assert len(golden["scores"]) == 21
    for task, wanted in golden["scores"].items():
        row = summary["overall"]["all"] if task == "all" else summary["task"][task]
        assert row["accuracy"] == pytest.approx(wanted, abs=0.005), task


def test_egoschema_submits_the_same_file(tmp_path):
    golden, items = load("egoschema", tmp_path)
    path = TASKS["egoschema"].export(verdicts("egoschema", items, golden["asked"]), tmp_path)
    assert path.read_text("utf-8") == golden["submission"]


def test_perception_test_submits_the_same_file(tmp_path):
    golden, items = load("perception-test", tmp_path)
    path = TASKS["perception-test"].export(verdicts("perception-test", items, golden["asked"]), tmp_path)
    assert json.loads(path.read_text("utf-8")) == golden["submission"]


def check_videomme(name, items, asked, scores):
    results = verdicts(name, items, asked)
    assert [verdict.prediction for _, verdict in results] == [wanted["letter"] for wanted in asked]
    summary = summarise(results)
    columns = {value: row for column in summary for value, row in summary[column].items() if column != "overall"}
    for value, wanted in scores.items():
        row = summary["overall"]["all"] if value == "Overall" else columns[value]
        assert row["accuracy"] == pytest.approx(wanted, abs=0.0501), value  # the reference prints one decimal


def test_videomme_without_subtitles(tmp_path):
    golden, items = load("videomme", tmp_path)
    check_questions(items, golden["asked"], tmp_path)
    check_videomme("videomme", items, golden["asked"], golden["scores"])


def test_videomme_with_subtitles(tmp_path):
    """Real files give the number of frames and their rate; a cue that stays on screen repeats; without an srt file only
    the header remains.
    """
    golden = recorded("videomme")
    folder, task = lay_out(golden, tmp_path), TASKS["videomme-subtitles"]
    items = task.load(folder, golden["num_frames"])
    before = [wanted["before"] for wanted in golden["asked_subtitles"]]
    wanted = [{**one, "prompt": text + one["prompt"]} for one, text in zip(golden["asked"], before, strict=True)]
    check_questions(items, wanted, folder)
    check_videomme("videomme-subtitles", items, golden["asked_subtitles"], golden["scores_subtitles"])
    fewer = [item.questions[0].split("Select the best")[0] for item in task.load(folder, 8)]
    assert fewer == golden["subtitles_8_frames"] != before


@pytest.mark.parametrize("name", AUDIO)
def test_audio_is_scored_as_in_the_reference(name, tmp_path):
    golden, items = load(name, tmp_path)
    results = verdicts(name, items, golden["asked"])
    for (item, verdict), wanted in zip(results, golden["asked"], strict=True):
        assert (item.truth, verdict.right) == (wanted["truth"], wanted["right"]), wanted
        assert verdict.right_in == ({"form": wanted["binary"]} if "binary" in wanted else {})
    summary = summarise(results)
    assert summary["overall"]["all"]["accuracy"] == golden["scores"]["Overall"]
    if name == "clothoaqa":
        assert summary["form"]["yes/no"]["accuracy"] == golden["scores"]["Binary"]


# The values as the reference shows them to its judge, without its instructions.
BLOCK = "Question: {question}\nCorrect Answer: {answer}\nPredicted Answer: {prediction}"
BLOCKS = {
    "msvc": BLOCK.replace("Answer: {answer}", "Answers: {answer}"),
    "consistency": "Question 1: {question_1}\nQuestion 2: {question_2}\nCorrect Answer: {answer}\n"
    "Predicted Answer to Question 1: {prediction_1}\nPredicted Answer to Question 2: {prediction_2}",
}


@pytest.mark.parametrize("name", JUDGED)
def test_the_judge_is_prompted_and_parsed_as_in_the_reference(name, tmp_path):
    """The prompt of each attempt, unusual replies and the averages; some replies make the reference ask again."""
    golden, items = load(name, tmp_path / "data")
    task, aspects = TASKS[name], golden["scores"]
    calls = {key.removeprefix("judged_"): value for key, value in golden.items() if key.startswith("judged_")}
    assert calls.keys() == aspects.keys() == OWN[name].keys()
    said = iter(wanted["answer"] for wanted in golden["asked"])
    answers = run.Journal(tmp_path / "answers.jsonl", {})
    outcome = run.ask_all(task, items, lambda item, question: next(said), answers, 1)
    # Recorded aspect by aspect; here an item's aspects are asked one after the other.
    order, places = [], dict.fromkeys(calls, 0)
    for item in items:
        for aspect in dict.fromkeys(question.aspect for question in task.judge(item, answers.results[item.name])):
            order.append(calls[aspect][places[aspect]])
            places[aspect] += 1
    assert places == {aspect: len(entries) for aspect, entries in calls.items()}
    replies = [(200, reply) for entry in order for reply in entry["replies"]]
    prompts = {aspect: JudgePrompt("Rate.", BLOCKS.get(aspect, BLOCKS.get(name, BLOCK))) for aspect in aspects}
    with Endpoint(*replies) as endpoint:
        judge = Judge(endpoint.url, "m", prompts, retry_seconds=0.0)
        judged = run.judge_all(task, outcome, answers, judge, run.Journal(tmp_path / "judged.jsonl", {}), 1)
        shown = [body["messages"][1]["content"] for _, _, body in endpoint.asked]
    assert not judged.failed
    assert shown == [block for entry in order for block in entry["blocks"]]
    summary = summarise(judged.results)
    for aspect, wanted in aspects.items():
        row = summary["overall"]["all"] if aspect == "answer" else summary["aspect"][aspect]
        assert row["score"] == pytest.approx(wanted["score"], abs=0.0005)
        assert row.get("accuracy") == (pytest.approx(wanted["accuracy"], abs=0.005) if "accuracy" in wanted else None)


def test_every_benchmark_of_the_reference_is_recorded_with_its_commit():
    recordings = {path.stem for path in (GOLDEN / "evaluation").glob("*.json")}
    assert recordings == {*CHOICES, *AUDIO, *JUDGED, "videomme"}
    for name in recordings:
        assert re.fullmatch(r"(main|audio_visual) [0-9a-f]{40}", recorded(name)["reference"])
