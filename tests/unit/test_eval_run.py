"""An evaluation run: concurrent, resumable, patient; with a judge behind a real HTTP server."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from videollama_benchmarks import run
from videollama_benchmarks.judge import Judge, read_reply
from videollama_benchmarks.judge_prompts import JudgePrompt
from videollama_benchmarks.report import table, write_report
from videollama_benchmarks.tasks.items import Item, JudgeQuestion, Task, Verdict
from videollama_core.protocol.errors import (
    ArtifactMismatch,
    InvalidRequest,
    Overloaded,
    ServerUnreachable,
    StageFailed,
    UnreadableMedia,
)

KEY = {"task": "made"}
ITEMS = [Item(f"i{number}", "video", Path("x.mp4"), (f"q{number}",), f"a{number}") for number in range(6)]
TASK = Task("made", "made", lambda folder: ITEMS, lambda item, answers: Verdict(answers[0], answers[0] == item.truth))


def answer(item, question):
    return question.replace("q", "a")


def test_a_stopped_run_resumes_where_it_was(tmp_path):
    asked = []

    def unlucky(item, question):
        asked.append(item.name)
        if item.name == "i3" and asked.count("i3") == 1:
            raise ServerUnreachable("gone")
        return answer(item, question)

    with pytest.raises(ServerUnreachable):
        run.ask_all(TASK, ITEMS, unlucky, run.Journal(tmp_path / "a.jsonl", KEY), 1)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"name": "i4", "resu')  # killed while it wrote
    done = run.Journal(tmp_path / "a.jsonl", KEY).results
    assert "i0" in done and "i3" not in done
    outcome = run.ask_all(TASK, ITEMS, unlucky, run.Journal(tmp_path / "a.jsonl", KEY), 2)
    assert len(run.Journal(tmp_path / "a.jsonl", KEY).results) == 6
    assert asked.count("i0") == 1 and len(outcome.results) == 6 and not outcome.failed
    assert all(verdict.right for _, verdict in outcome.results)


def test_another_run_does_not_continue_this_one(tmp_path):
    run.Journal(tmp_path / "a.jsonl", KEY)
    with pytest.raises(ArtifactMismatch, match="another run"):
        run.Journal(tmp_path / "a.jsonl", {"task": "made", "order": "shuffled"})


def test_an_overloaded_server_is_retried_and_a_bad_video_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.01)
    tries = []

    def busy(item, question):
        tries.append(item.name)
        if item.name == "i1" and tries.count("i1") < 3:
            raise Overloaded("full")
        if item.name == "i2":
            raise UnreadableMedia("broken")
        return answer(item, question)

    journal = run.Journal(tmp_path / "a.jsonl", KEY)
    outcome = run.ask_all(TASK, ITEMS, busy, journal, 4)
    assert outcome.failed == {"i2": "UnreadableMedia: broken"} and tries.count("i1") == 3
    assert len(outcome.results) == 5 and "i2" not in journal.results  # it is tried again next time


def test_names_are_unique():
    with pytest.raises(InvalidRequest, match="two items are named 'i0'"):
        run.check_names([ITEMS[0], ITEMS[0]])


def test_the_report_is_a_table_a_file_and_a_picture(tmp_path):
    results = [(item, Verdict("x", number < 4)) for number, item in enumerate(ITEMS)]
    about = {"task": "made", "order": "true"}
    summary = write_report(tmp_path, about, run.Outcome(results, {"i9": "UnreadableMedia: broken"}))
    assert summary["overall"]["all"] == {"items": 6, "accuracy": 66.67}
    assert "66.67 %" in table(summary)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["failed"] and content["items"][0]["right"] is True
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


class Endpoint:
    """A small OpenAI-compatible server that sends prepared replies and records requests."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, self.headers.get("Authorization"), body))
                status, text = outer.replies.pop(0)
                content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


QUESTION = JudgeQuestion("answer", {"question": "who?", "answer": "Bo", "prediction": "x" * 60}, "pred")
PROMPTS = {"answer": JudgePrompt("Compare.", "Question: {question}\nAnswer: {answer} or {prediction}, as {'score': 4}")}


def test_the_judge_is_asked_as_documented_and_retried_on_errors():
    """On every second attempt the answer is truncated, as in the reference."""
    replies = [(503, ""), (200, "hm"), (200, '{"pred": "yes", "score": 4}')]
    with Endpoint(*replies) as endpoint:
        verdict = Judge(endpoint.url, "m", PROMPTS, "secret", retry_seconds=0.01).ask(QUESTION)
        assert (verdict.score, verdict.right) == (4, True)
        path, key, body = endpoint.asked[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and len(endpoint.asked) == 3
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.7, 0.95, 800, "m")
    shown = [body["messages"][1]["content"] for _, _, body in endpoint.asked]
    assert shown[0] == shown[2] == f"Question: who?\nAnswer: Bo or {'x' * 60}, as {{'score': 4}}"
    assert shown[1] == shown[0].replace("x" * 60, "x" * 50)
    assert body["messages"][0] == {"role": "system", "content": "Compare."}


def test_braces_in_a_value_are_not_a_placeholder():
    (_, user) = JudgePrompt("s", "{question} {answer} {other}").messages({"question": "{answer}?", "answer": "{}"})
    assert user["content"] == "{answer}? {} {other}"


def test_a_judges_refusal_is_not_retried():
    with Endpoint((401, "")) as endpoint:
        with pytest.raises(InvalidRequest, match="refused with 401"):
            Judge(endpoint.url, "m", PROMPTS, retry_seconds=0.01).ask(QUESTION)
        assert len(endpoint.asked) == 1
    with pytest.raises(ServerUnreachable):
        Judge("http://127.0.0.1:9", "m", PROMPTS, retry_seconds=0.001).ask(QUESTION)


@pytest.mark.parametrize("reading", ["pred", "binary_pred", "score", "first"])
@pytest.mark.parametrize("text", ["", "hm", "Sure: {'score': 4}", "{'score': open}", "```json\n{}\n```", "(" * 9999])
def test_invalid_judge_replies_are_refused(text, reading):
    with pytest.raises(StageFailed, match="the judge replied"):
        read_reply(text, reading)


@pytest.mark.parametrize("text", ["{}", "5", "[4]", "{'score': 'high'}", "{'score': None}", "{'score': 1e999}"])
def test_only_scores_must_be_numbers(text):
    for reading in ("score", "first"):
        with pytest.raises(StageFailed, match="expected a JSON object with .* and nothing else"):
            read_reply(text, reading)
    assert (read_reply(text, "pred").score, read_reply(text, "pred").right) == (0, None)
    assert (read_reply(text, "binary_pred").score, read_reply(text, "binary_pred").right) == (0, False)


def test_judged_items_are_scored_by_aspect(tmp_path):
    """Several calls for one aspect are averaged and truncated; an item that lacks one of them is not scored."""
    several = [replace(QUESTION, reading="score")] * 2
    task = Task("made", "made", lambda folder: ITEMS, judge=lambda item, answers: several)
    replies = [(200, '{"score": 2}'), (200, '{"score": 3.8}')] * 5 + [(200, '{"score": 1}'), (401, "")]
    with Endpoint(*replies) as endpoint:
        answers = run.Journal(tmp_path / "a.jsonl", KEY)
        outcome = run.ask_all(task, ITEMS, answer, answers, 2)
        judged = run.Journal(tmp_path / "j.jsonl", KEY)
        outcome = run.judge_all(task, outcome, answers, Judge(endpoint.url, "m", PROMPTS), judged, 1)
    assert [verdict.score for _, verdict in outcome.results] == [2] * 5
    assert list(outcome.failed) == ["i5#answer#1"]
