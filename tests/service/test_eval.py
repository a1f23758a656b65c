"""tiny-shapes through a real server: right about clips it never saw, wrong when their frames are shuffled."""

import json
import math
import re
import subprocess

import pytest

from conftest import HELD_OUT, HELD_OUT_SOUNDS, TINY_SHAPES, TINY_SHAPES_AV
from service.servers import vl2
from unit.test_eval_run import Endpoint
from videollama_benchmarks.demo import choose_items
from videollama_benchmarks.report import summarise
from videollama_benchmarks.run import Journal, ask_all
from videollama_benchmarks.sources import FrameOrder, in_process, service
from videollama_benchmarks.tasks.shapes import TASKS, load_shapes

(TASK,) = TASKS
NUM_FRAMES = json.loads((TINY_SHAPES / "config.json").read_text("utf-8"))["num_frames"]
ORDER = "needs the order of frames"


def ask(server, items, tmp_path, order="true"):
    frames = None if order == "true" else FrameOrder(order, NUM_FRAMES)
    with server.client() as client:
        answerer = service(client, TASK.max_new_tokens, 60.0, frames)
        outcome = ask_all(TASK, items, answerer, Journal(tmp_path / f"{order}.jsonl", {"order": order}), 8)
    assert not outcome.failed
    return outcome.results


@pytest.fixture(scope="module")
def items():
    return load_shapes(HELD_OUT)


@pytest.fixture(scope="module")
def served(server_of, items, tmp_path_factory):
    return ask(server_of("tiny-shapes"), items, tmp_path_factory.mktemp("eval"))


def accuracy(results):
    return summarise(results)["overall"]["all"]["accuracy"]


def of_topics(results, *topics):
    return [result for result in results if result[0].groups["topic"] in topics]


def temporal(items):
    return [item for item in items if item.groups[ORDER] == "yes" and item.groups["topic"] != "description"]


def test_held_out_accuracy(served):
    assert accuracy(served) >= 90
    for topic in ("motion", "order"):
        assert accuracy(of_topics(served, topic)) >= 85, topic


def test_shuffled_frames_reduce_accuracy_to_chance(server_of, items, served, tmp_path):
    """Each temporal question has two answers that fit an unordered set of frames, so a model that uses time loses them."""
    asked = temporal(items)[::2]
    shuffled = ask(server_of("tiny-shapes"), asked, tmp_path, "shuffled")
    chance = 50 + 3 * 50 / math.sqrt(len(asked))  # three standard deviations of as many coin tosses
    assert accuracy(shuffled) <= chance
    assert accuracy([result for result in served if result[0] in asked]) > accuracy(shuffled)


def test_reversed_frames_reverse_the_answers(server_of, items, tmp_path):
    asked = [item for item in temporal(items) if item.groups["form"] == "open"][::2]
    assert accuracy(ask(server_of("tiny-shapes"), asked, tmp_path, "reversed")) <= 20


def test_in_process_and_served_answers_are_equal(served, tmp_path):
    """Item by item: every fifth here, all of them in the model card's measurement."""
    some = served[::5]
    answerer = in_process(TINY_SHAPES, None, TASK.max_new_tokens, None)
    local = ask_all(TASK, [item for item, _ in some], answerer, Journal(tmp_path / "local.jsonl", {}), 1)
    assert [verdict.prediction for _, verdict in local.results] == [verdict.prediction for _, verdict in some]


def test_the_command(server_of, tmp_path):
    """`vl2 eval`: table, files, and no question asked twice."""
    words = (
        "eval",
        "shapes",
        HELD_OUT,
        "--out",
        tmp_path / "out",
        "--url",
        server_of("tiny-shapes").grpc,
        "--limit",
        8,
    )
    result = subprocess.run(vl2(*words), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "topic: " in result.stdout and "8/8" in result.stderr
    assert (tmp_path / "out/result.png").is_file()
    lines = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    assert subprocess.run(vl2(*words), capture_output=True, timeout=120).returncode == 0
    assert (tmp_path / "out/answers.jsonl").read_text().splitlines() == lines
    broken = subprocess.run(
        vl2(*words, "--order", "shuffled", "--num-frames", NUM_FRAMES), capture_output=True, text=True, timeout=120
    )
    assert broken.returncode == 1 and "belongs to another run" in broken.stderr


@pytest.mark.parametrize("named", [True, False])
def test_a_judged_benchmark(named, tmp_path):
    """`vl2 eval` with prompts from a file and with the built-in ones: the judge sees answers, and the result names the
    prompts' source.
    """
    (tmp_path / "videos").mkdir()
    questions, answers = [], []
    for number, item in enumerate(load_shapes(HELD_OUT)[:2]):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(item.media.read_bytes())
        questions.append({"question_id": number, "video_name": f"{number}", "question": item.questions[0]})
        answers.append({"question_id": number, "answer": item.truth})
    (tmp_path / "test_q.json").write_text(json.dumps(questions))
    (tmp_path / "test_a.json").write_text(json.dumps(answers))
    prompts = {"msvd-qa": {"answer": {"system": "Be fair.", "user": "{question} | {answer} | {prediction}"}}}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    replies = [(200, "{'pred': 'yes', 'score': 4.8}"), (200, "{'pred': 'no', 'score': 1}")]
    with Endpoint(*replies) as endpoint:
        words = ["eval", "msvd-qa", tmp_path, "--out", tmp_path / "out", "--checkpoint", TINY_SHAPES]
        words += ["--judge-url", endpoint.url, "--judge-model", "m", "--judge-concurrency", 1]
        words += ["--judge-prompts", tmp_path / "prompts.json"] if named else []
        completed = subprocess.run(vl2(*words), capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    assert "50.00 %  score 2.50  (2)" in completed.stdout
    assert ("do not compare with published ones" in completed.stdout) is not named
    result = json.loads((tmp_path / "out/result.json").read_text())
    shown = endpoint.asked[0][2]["messages"][1]["content"]
    predicted = result["items"][0]["prediction"]
    if named:
        assert shown == f"{questions[0]['question']} | {answers[0]['answer']} | {predicted}"
        assert result["judge_prompts"] == str(tmp_path / "prompts.json")
    else:
        assert predicted in shown and "do not compare" in result["judge_prompts"]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("shapes", "/nowhere"), 1, "held_out.json is missing"),
        (("activitynet-qa", "/nowhere"), 2, "give --judge-url and --judge-model"),
        (("shapes", HELD_OUT, "--order", "shuffled"), 2, "give --num-frames"),
        (("videomme-subtitles", "/nowhere"), 2, "give --num-frames"),
        (("videomme-subtitles", "/nowhere", "--checkpoint", TINY_SHAPES), 1, "no parquet file"),
        (("shapes", HELD_OUT, "--judge-prompts", "x.json"), 2, "scored without a judge"),
        (("shapes", HELD_OUT, "--url", "localhost:1"), 3, "ServerUnreachable"),
    ],
)
def test_a_run_that_cannot_begin_reports_the_reason(words, code, reason, tmp_path):
    result = subprocess.run(vl2("eval", *words, "--out", tmp_path), capture_output=True, text=True, timeout=120)
    assert result.returncode == code and reason in result.stderr and "Traceback" not in result.stderr


def test_the_demo(bundle_of):
    """The README's first command: questions on different topics about different clips, the true answers, and a picture."""
    chosen = choose_items()
    assert len({item.media for item in chosen}) == len({item.groups["topic"] for item in chosen}) == len(chosen) >= 6
    out = bundle_of("tiny-shapes")
    (out / "contact_sheet.png").unlink(missing_ok=True)
    result = subprocess.run(vl2("demo", "--out", out), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    for item in chosen:
        assert item.questions[0] in result.stdout and f"true answer  {item.truth}" in result.stdout
    right = int(re.search(r"(\d+) of \d+ right", result.stdout)[1])
    assert right >= len(chosen) - 1
    assert right == result.stdout.count("   right\n") and result.stdout.count("   WRONG\n") == len(chosen) - right
    assert "(cached: not run again)" in result.stdout
    assert (out / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("folder", [TINY_SHAPES, TINY_SHAPES_AV], ids=lambda folder: folder.name)
def test_the_shipped_files_are_small(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12 * 2**20


@pytest.mark.parametrize("folder", [HELD_OUT, HELD_OUT_SOUNDS], ids=lambda folder: folder.name)
def test_the_held_out_clips_exist(folder):
    names = [item.name for item in load_shapes(folder)]
    assert len(set(names)) == len(names) and all(item.media.is_file() for item in load_shapes(folder))


@pytest.mark.parametrize(
    ("folder", "held_out"),
    [(TINY_SHAPES, (HELD_OUT,)), (TINY_SHAPES_AV, (HELD_OUT_SOUNDS, HELD_OUT))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_model_card_reports_what_was_measured(folder, held_out):
    import importlib.util

    path = TINY_SHAPES.parents[1] / "measure_tiny_shapes.py"
    spec = importlib.util.spec_from_file_location("measure_tiny_shapes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert module.make_table(results) in (folder / "README.md").read_text("utf-8")
    items = sum(len(load_shapes(one)) for one in held_out)
    assert results["items"] == results["equal answers in process and served"] == items
