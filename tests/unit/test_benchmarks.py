"""Every benchmark, on a tiny generated folder in its published format: prompts, answers, metrics and files for external scoring."""

import json
import re

import pytest

from conftest import ROOT
from videollama_benchmarks.cli import TASKS
from videollama_benchmarks.judge_prompts import OWN, read_prompts
from videollama_benchmarks.report import summarise
from videollama_benchmarks.tasks.choices import LETTER_INSTRUCTION, MVBENCH
from videollama_core.protocol.errors import BadSample


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def touch(*paths):
    for path in paths:
        write(path, "")


def load(name, folder):
    return TASKS[name].load(folder, 16) if TASKS[name].counts_frames else TASKS[name].load(folder)


def read(name, item, answer):
    return TASKS[name].read(item, [answer])


def test_mvbench(tmp_path):
    entry = {"video": "a.mp4", "question": "Which way?", "candidates": ["Up.", "Down.", "Left."], "answer": "Left."}
    write(tmp_path / "json/moving_direction.json", [entry])
    write(tmp_path / "json/action_sequence.json", [{**entry, "start": 1.5, "end": 4.0}])
    write(tmp_path / "json/episodic_reasoning.json", [{**entry, "video": "castle_s01", "start": 0.0, "end": 9.5}])
    items = {item.groups["task"]: item for item in load("mvbench", tmp_path)}
    moving, sequence, episode = (items[name] for name in ("Moving Direction", "Action Sequence", "Episodic Reasoning"))
    assert moving.questions == (f"Question: Which way?\nOptions:\n(A) Up.\n(B) Down.\n(C) Left.\n{LETTER_INSTRUCTION}",)
    assert (moving.start, moving.end, moving.truth) == (None, None, 2)
    assert moving.media == tmp_path / "video/clevrer/video_validation/a.mp4"
    assert (sequence.start, sequence.end) == (1.5, 4.0)
    assert episode.media == tmp_path / "video/tvqa/frames_fps3_hq/castle_s01"  # a folder of frames
    assert read("mvbench", moving, "(C)").right and read("mvbench", moving, "It goes left.").right
    assert read("mvbench", moving, "mumble").right  # the fallback is the third option
    assert not read("mvbench", moving, "(A) Left").right


def test_mvbench_has_twenty_tasks_five_with_bounds_one_of_frames():
    assert len(MVBENCH) == 20
    assert sum(bounded for _, _, bounded, _ in MVBENCH.values()) == 5
    assert [name for name, entry in MVBENCH.items() if entry[3]] == ["Episodic Reasoning"]


def test_egoschema(tmp_path):
    entry = {"q_uid": "u1", "question": "Why?", **{f"option {index}": f"because {index}" for index in range(5)}}
    write(tmp_path / "questions.json", [entry])
    (item,) = load("egoschema", tmp_path)
    assert "(E) because 4\n" in item.questions[0] and item.questions[0].endswith("The best answer is: ")
    assert item.media == tmp_path / "good_clips_git/u1.mp4"
    verdict = read("egoschema", item, "(E)")
    assert verdict.right is None and read("egoschema", item, "hm").prediction == "C"
    assert TASKS["egoschema"].export([(item, verdict)], tmp_path).read_text() == "q_uid, answer\nu1, 4\n"


def test_perception_test(tmp_path):
    question = {"id": 0, "question": "What?", "options": ["x", "y", "z"], "answer_id": 1, "area": "physics"}
    write(tmp_path / "mc_question_valid.json", {"video_7": {"mc_question": [question, question | {"id": 1}]}})
    touch(tmp_path / "videos/video_7.mkv")
    items = load("perception-test", tmp_path)
    assert [item.name for item in items] == ["video_7/0", "video_7/1"]
    assert items[0].media.suffix == ".mkv"
    results = [
        (item, read("perception-test", item, answer)) for item, answer in zip(items, ("(B)", "(A)"), strict=True)
    ]
    assert [verdict.right for _, verdict in results] == [True, False]
    assert summarise(results)["area"]["physics"] == {"items": 2, "accuracy": 50.0}
    exported = json.loads(TASKS["perception-test"].export(results, tmp_path).read_text())
    assert exported == {"video_7": [{"id": 0, "answer_id": 1, "answer": "y"}, {"id": 1, "answer_id": 0, "answer": "x"}]}


def test_videomme(tmp_path):
    import pyarrow
    from pyarrow import parquet

    from conftest import MEDIA

    row = {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "History",
        "url": "https://www.youtube.com/watch?v=abc",
        "videoID": "abc",
        "question_id": "001-1",
        "task_type": "Counting",
        "question": "How many?",
        "options": ["A. 2.", "B. 3.", "C. 4.", "D. 5."],
        "answer": "B",
    }
    (tmp_path / "videomme").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "videomme/test-00000-of-00001.parquet")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/abc.mp4").write_bytes((MEDIA / "sample_demo_1.mp4").read_bytes())
    write(tmp_path / "subtitles/abc.srt", "1\n00:00:00,000 --> 00:10:00,000\nThree!\n")
    (item,) = load("videomme", tmp_path)
    assert "How many?\nA. 2.\nB. 3.\nC. 4.\nD. 5.\n" in item.questions[0] and "subtitles" not in item.questions[0]
    assert item.groups["domain"] == "Knowledge" and item.groups["duration"] == "short"
    for answer, right in (("B", True), ("there are three", True), ("(A)", False), ("hm", False)):
        assert read("videomme", item, answer).right is right
    (told,) = load("videomme-subtitles", tmp_path)
    assert told.questions[0].startswith("This video's subtitles are listed below:\n" + "Three!\n" * 16 + "Select")
    assert told.questions[0].endswith(item.questions[0])
    (tmp_path / "videos/abc.mp4").unlink()  # asking about it fails by itself
    (lost,) = load("videomme-subtitles", tmp_path)
    assert lost.questions[0] == "This video's subtitles are listed below:\n\n" + item.questions[0]
    parquet.write_table(pyarrow.Table.from_pylist([row | {"options": ["(A) 2"]}]), tmp_path / "test.parquet")
    with pytest.raises(BadSample, match=r"an option is '\(A\) 2'"):
        load("videomme", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "stem"),
    [("activitynet-qa", "all_test", "v_x1"), ("activitynet-qa", "all_test", "x1"), ("msvd-qa", "videos", "x1")],
)
def test_questions_and_answers_for_a_judge(tmp_path, name, folder, stem):
    write(tmp_path / "test_q.json", [{"question_id": "q1", "video_name": "x1", "question": "who?"}])
    write(tmp_path / "test_a.json", [{"question_id": "q1", "answer": "a man", "type": 3}])
    touch(tmp_path / folder / f"{stem}.avi")
    (item,) = load(name, tmp_path)
    assert item.questions == ("who?",) and item.media.name == f"{stem}.avi" and item.groups == {"type": "3"}
    (asked,) = TASKS[name].judge(item, ["a person"])
    assert asked.reading == "pred"
    assert asked.values == {"question": "who?", "answer": "a man", "prediction": "a person"}
    write(tmp_path / "test_a.json", [{"question_id": "q2", "answer": "a man"}])
    with pytest.raises(BadSample, match="no answer to question q1"):
        load(name, tmp_path)


def test_video_chatgpt_has_five_aspects_of_three_files(tmp_path):
    write(tmp_path / "generic_qa.json", [{"Q": "What?", "A": "This.", "video_name": "v"}])
    write(tmp_path / "temporal_qa.json", [{"Q": "When?", "A": "Then.", "video_name": "v"}])
    write(tmp_path / "consistency_qa.json", [{"Q1": "One?", "Q2": "Two?", "A": "Same.", "video_name": "v"}])
    items = load("video-chatgpt", tmp_path)
    judge = TASKS["video-chatgpt"].judge
    aspects = [[question.aspect for question in judge(item, ["x"] * len(item.questions))] for item in items]
    assert aspects == [["correctness", "detail", "context"], ["temporal"], ["consistency"]]
    (consistency,) = judge(items[2], ["first words", "second words"])
    assert consistency.reading == "score"
    system, user = OWN["video-chatgpt"]["consistency"].messages(consistency.values)
    for shown in ("One?", "Two?", "first words", "second words", "Same."):
        assert shown in user["content"]
    assert "agree with the correct one" in system["content"]


@pytest.mark.parametrize("file", ["msvc.json", "MSVC.json"])
def test_msvc_is_judged_twice_against_all_captions(tmp_path, file):
    write(tmp_path / file, [{"video_path": "a/b.mp4", "question": "Describe.", "captions": ["one", "two"]}])
    (item,) = load("msvc", tmp_path)
    questions = TASKS["msvc"].judge(item, ["words"])
    assert [question.aspect for question in questions] == ["correctness", "detailedness"]
    for question in questions:
        _, user = OWN["msvc"][question.aspect].messages(question.values)
        assert user["content"] == (
            "Question: Describe.\nReference descriptions: ['one', 'two']\nPredicted answer: words"
        )
    assert item.media == tmp_path / "a/b.mp4"


def test_avsd_and_avssd(tmp_path):
    turn = {"question": "is there music?", "answer": "no"}
    write(tmp_path / "avsd_test.json", {"dialogs": [{"image_id": "C1", "dialog": [turn, turn]}]})
    assert [item.name for item in load("avsd", tmp_path)] == ["C1/0", "C1/1"]
    write(tmp_path / "vggsound.csv", 'id1,30,"dog barking, close",test\nid2,5,cat,train\n')
    (item,) = load("avssd", tmp_path)
    assert (item.name, item.truth) == ("id1_000030", "dog barking, close")
    assert item.questions == ("Identify the event in the video.",) and item.kind == "video+audio"


def test_clothoaqa(tmp_path):
    write(
        tmp_path / "clotho_aqa_test.csv",
        'file_name,QuestionText,answer,confidence\na.wav,"Is it raining, or not?",yes,yes\na.wav,What?,water,no\n',
    )
    items = load("clothoaqa", tmp_path)
    assert items[0].questions == ("Question: Is it raining, or not?\nAnswer the question using a single word.",)
    results = [(items[0], read("clothoaqa", items[0], "Yes.")), (items[1], read("clothoaqa", items[1], "the water"))]
    summary = summarise(results)
    assert summary["overall"]["all"]["accuracy"] == 50.0
    assert summary["form"]["yes/no"]["accuracy"] == 0.0  # of yes/no questions the full stop counts, as in the reference


def test_scenes_and_voices(tmp_path):
    write(tmp_path / "meta.txt", "audio/1.wav\tcafe/restaurant\tc1\naudio/2.wav\tcity_center\tc2\n")
    cafe, city = load("tut2017", tmp_path)
    assert cafe.truth == "cafe or restaurant" and city.truth == "city center"
    assert cafe.questions[0].count("\n(") == 15 and "\n.Answer with" in cafe.questions[0]
    assert read("tut2017", cafe, "(C)").right and read("tut2017", cafe, "a cafe or restaurant").right
    assert not read("tut2017", cafe, "(A)").right
    write(tmp_path / "te.json", {"data": [{"wav": "/x/f1_0_cough.wav", "labels": "/m/01b_21"}]})
    (cough,) = load("vocalsound", tmp_path)
    assert cough.media == tmp_path / "audio_16k/f1_0_cough.wav" and read("vocalsound", cough, "C").right
    write(tmp_path / "te.json", {"data": [{"wav": "x.wav", "labels": "/m/none"}]})
    with pytest.raises(BadSample, match="/m/none"):
        load("vocalsound", tmp_path)


def test_music_avqa_fills_its_templates(tmp_path):
    entry = {
        "video_id": "00000272",
        "question_id": 8,
        "type": '["Audio-Visual", "Counting"]',
        "question_content": "Is the <Object> left of the <Object2>?",
        "templ_values": '["cello", "flute"]',
        "question_deleted": 0,
        "anser": "two",
    }
    write(tmp_path / "avqa-test.json", [entry])
    (item,) = load("music-avqa", tmp_path)
    assert item.questions == ("Is the cello left of the flute?",)
    assert item.groups == {"modality": "Audio-Visual", "type": "Audio-Visual/Counting"}
    assert read("music-avqa", item, "Two.").right


def test_scenes_are_not_matched_by_capital_letters(tmp_path):
    """ "It is a park." was once read as the library (I), and "Car" as the cafe (C)."""
    write(tmp_path / "meta.txt", "1.wav\tpark\n2.wav\tcar\n3.wav\tlibrary\n4.wav\tcafe/restaurant\n")
    park, car, library, cafe = load("tut2017", tmp_path)
    assert read("tut2017", park, "It is a park.").right and not read("tut2017", library, "It is a park.").right
    assert read("tut2017", car, "Car").right and not read("tut2017", cafe, "Car").right


def test_clotho_is_judged_against_each_caption(tmp_path):
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    write(tmp_path / "clotho_captions_evaluation.csv", f'{header}\nrain 1.wav,"a, b",c,d,e,f\n')
    (item,) = load("clotho", tmp_path)
    assert item.media == tmp_path / "evaluation/rain 1.wav" and item.kind == "audio"
    questions = TASKS["clotho"].judge(item, ["rain"])
    assert [question.values["answer"] for question in questions] == ["a, b", "c", "d", "e", "f"] * 2
    assert [question.aspect for question in questions] == ["correctness"] * 5 + ["detailedness"] * 5


def test_every_judged_benchmark_has_a_built_in_prompt():
    assert {name for name, task in TASKS.items() if task.judge} == set(OWN)


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.json"
    prompt = {"system": "Be fair.", "user": "{question} {answer} {prediction}"}
    write(path, {"avsd": {"answer": prompt}})
    assert read_prompts(path, "avsd", OWN["avsd"])["answer"].system == "Be fair."
    for content, reason in (
        ({"msvd-qa": {}}, "'avsd' was expected"),
        ({"avsd": {"correctness": prompt}}, "'answer' was expected"),
        ({"avsd": {"answer": {"system": "x"}}}, "'user' was expected"),
        ({"avsd": {"answer": prompt | {"user": "{question}"}}}, "lacks {prediction}"),
        ({"avsd": {"answer": prompt | {"user": 3}}}, "expected two strings"),
    ):
        write(path, content)
        with pytest.raises(BadSample) as caught:
            read_prompts(path, "avsd", OWN["avsd"])
        assert reason in str(caught.value)


def test_the_documented_prompts_can_be_read(tmp_path):
    (example,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/evaluation.md").read_text("utf-8"), re.DOTALL)
    write(tmp_path / "prompts.json", example)
    prompt = read_prompts(tmp_path / "prompts.json", "activitynet-qa", OWN["activitynet-qa"])["answer"]
    _, user = prompt.messages({"question": "Q", "answer": "A", "prediction": "P"})
    assert user["content"].startswith("Asked: Q\nRight: A\nGiven: P\nMark it as {'pred'")


@pytest.mark.parametrize("name", TASKS)
def test_a_folder_without_the_files_says_what_is_missing(name, tmp_path):
    with pytest.raises(BadSample) as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_entry_in_another_format_is_refused_with_the_expected_one(tmp_path):
    write(tmp_path / "questions.json", [{"uid": "x"}])
    with pytest.raises(BadSample, match="'q_uid' was expected"):
        load("egoschema", tmp_path)
    write(tmp_path / "tut2017_eval.jsonl", '{"audio": "a.wav", "gt": "car"}\n{')
    with pytest.raises(BadSample, match="line 2 cannot be read as JSON"):
        load("tut2017", tmp_path)
    write(tmp_path / "instruction_val.json", [{"video": "a.mp4", "conversations": []}])
    with pytest.raises(BadSample, match="a question and an answer were expected"):
        load("avsd", tmp_path)
    with pytest.raises(BadSample, match="cannot be read as JSON"):
        write(tmp_path / "questions.json", "{")
        load("egoschema", tmp_path)
