"""CMM and POPE: the published layouts, and the scores of the published scorers (tests/golden/hallucination)."""

import io
import json
import wave

import av
import numpy as np
import pytest

from conftest import GOLDEN, HELD_OUT, MEDIA
from videollama_benchmarks.cli import TASKS
from videollama_benchmarks.report import summarise, table
from videollama_benchmarks.sources import _media, join_sound
from videollama_benchmarks.tasks import hallucination
from videollama_benchmarks.tasks.hallucination import load_cmm, load_pope, load_shapes_probing
from videollama_core.protocol.errors import BadSample, UnreadableMedia

CMM, POPE = (json.loads((GOLDEN / "hallucination" / name).read_text("utf-8")) for name in ("cmm.json", "pope.json"))


@pytest.fixture
def cmm(tmp_path):
    """The data set's published form: a list, without a model's answers."""
    rows = [{key: value for key, value in row.items() if key != "pred"} for row in CMM["rows"]]
    (tmp_path / hallucination.CMM_FILE).write_text(json.dumps(rows), "utf-8")
    return tmp_path


@pytest.fixture
def pope(tmp_path):
    for split, rows in POPE["rows"].items():
        lines = [json.dumps({key: value for key, value in row.items() if key != "answer"}) for row in rows]
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(lines), "utf-8")
    return tmp_path


def scored(name, items, answers):
    task = TASKS[name]
    results = [(item, task.read(item, [answer])) for item, answer in zip(items, answers, strict=True)]
    return results, summarise(results, task.measure)


def test_cmm_scores_equal_the_published_scorers(cmm):
    items = load_cmm(cmm)
    assert len(items) == len(CMM["rows"]) == 14
    _, summary = scored("cmm", items, [row["pred"] for row in CMM["rows"]])

    def numbers(row):
        return [round(row[key] / 100, 4) for key in ("perception accuracy", "hallucination resistance", "accuracy")]

    assert numbers(summary["overall"]["all"]) == pytest.approx(CMM["overall"], abs=1e-4)
    for column in ("sub_category", "granularity"):
        assert set(summary[column]) == set(CMM[column])
        for value, wanted in CMM[column].items():
            assert numbers(summary[column][value]) == pytest.approx(wanted, abs=1e-4), value
    assert set(summary["modality"]) == {"visual", "audio", "visual+audio"} and len(summary["category"]) == 2
    assert "hallucination resistance 42.86" in table(summary).splitlines()[0]


def test_cmm_items(cmm):
    items = load_cmm(cmm)
    assert items[0].questions == ("Did you see river in the video? Answer with yes or no.",)
    seen, heard, both = items[0], items[4], items[6]
    assert (seen.kind, seen.media, seen.sound) == ("video", cmm / "reorg_raw_files/x/a.mp4", None)
    assert (heard.kind, heard.media, heard.sound) == ("audio", cmm / "reorg_raw_files/x/c.wav", None)
    assert (both.kind, both.media, both.sound) == (
        "video+audio",
        cmm / "reorg_raw_files/x/d.mp4",
        cmm / "reorg_raw_files/x/d.wav",
    )
    assert items[12].truth == "yes"  # "Yes" in the file
    lines = [json.dumps(row | {"question": row["question"] + " Answer with yes or no."}) for row in CMM["rows"]]
    (cmm / hallucination.CMM_FILE).write_text("\n".join(lines), "utf-8")  # as its sample output is
    assert [item.questions for item in load_cmm(cmm)] == [item.questions for item in items]


def test_cmm_exports_what_the_published_scorer_reads(cmm, tmp_path):
    answers = [row["pred"] for row in CMM["rows"]]
    results, _ = scored("cmm", load_cmm(cmm), answers)
    rows = [json.loads(line) for line in TASKS["cmm"].export(results, tmp_path).read_text("utf-8").splitlines()]
    for row, wanted in zip(rows, CMM["rows"], strict=True):
        for key in ("category", "sub_category", "modality", "granularity", "pred"):
            assert row[key] == wanted[key]
        assert row["answer"] == wanted["answer"].lower()


@pytest.mark.parametrize("split", ["all", *hallucination.POPE_SPLITS])
def test_pope_scores_equal_the_published_scorers(pope, split):
    items = load_pope(pope)
    answers = [row["answer"] for rows in POPE["rows"].values() for row in rows]
    assert len(items) == len(answers) == 30
    _, summary = scored("pope", items, answers)
    scores = summary["overall"]["all"] if split == "all" else summary["split"][split]
    names = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "F1": "F1 score"}
    for ours, theirs in {**names, "yes ratio": "Yes ratio"}.items():
        assert scores[ours] == pytest.approx(100 * POPE["scores"][split][theirs], abs=0.006), ours


def test_pope_items(pope):
    item = load_pope(pope)[10]
    assert item.name == "popular/1" and item.kind == "image" and item.groups == {"split": "popular"}
    assert item.media == pope / "val2014/COCO_val2014_000000000000.jpg"
    assert item.questions == ("Is there a thing 0 in the image? Please answer this question with one word.",)
    (pope / "output/coco").mkdir(parents=True)
    (pope / "coco_pope_random.json").rename(pope / "output/coco/coco_pope_random.json")
    (pope / "coco_pope_popular.json").unlink()
    assert {item.groups["split"] for item in load_pope(pope)} == {"random", "adversarial"}


def test_empty_counts_cause_no_division_by_zero(pope):
    _, summary = scored("pope", load_pope(pope)[1:2], ["no"])
    assert summary["overall"]["all"] == {
        "items": 1, "accuracy": 100.0, "precision": 0.0, "recall": 0.0, "F1": 0.0, "yes ratio": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modality": "smell"}, "modality 'smell'"),
        ({"answer": "maybe"}, "'maybe'; yes or no"),
        ({"video_path": "None"}, "names no such file"),
    ],
)
def test_an_unusable_entry_is_refused_with_the_reason(tmp_path, change, reason):
    (tmp_path / hallucination.CMM_FILE).write_text(json.dumps([CMM["rows"][0] | change]), "utf-8")
    with pytest.raises(BadSample, match=reason):
        load_cmm(tmp_path)


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "coco_pope_random.json").write_text('{"question_id": 1}\n{broken\n', "utf-8")
    with pytest.raises(BadSample, match="random.json:2"):
        load_pope(tmp_path)


def test_silent_video_and_its_audio_become_one_file(cmm):
    """The same pictures and samples, with nothing encoded again."""
    item = load_cmm(cmm)[6]
    item.media.parent.mkdir(parents=True)
    item.media.write_bytes((MEDIA / "plain_96x64.mp4").read_bytes())
    item.sound.write_bytes((MEDIA / "tone_16k_mono_4s.wav").read_bytes())
    sent = _media(item, None)
    assert sent["with_audio"] is True
    with av.open(io.BytesIO(sent["video"])) as whole, av.open(str(item.media)) as silent:
        for ours, theirs in zip(whole.decode(video=0), silent.decode(video=0), strict=True):
            assert np.array_equal(ours.to_ndarray(format="rgb24"), theirs.to_ndarray(format="rgb24"))
            assert ours.time == pytest.approx(theirs.time)
        whole.seek(0)
        heard = np.concatenate([frame.to_ndarray().ravel() for frame in whole.decode(audio=0)])
    with wave.open(str(item.sound)) as file:
        assert np.array_equal(heard, np.frombuffer(file.readframes(file.getnframes()), np.int16))
    with pytest.raises(UnreadableMedia, match="cannot be joined into one file"):
        join_sound(item.sound, item.media)


def test_probes_of_the_synthetic_world_are_balanced():
    items = load_shapes_probing(HELD_OUT)
    assert len(items) >= 150 and all(item.media.is_file() for item in items)
    assert len({item.name for item in items}) == len(items)
    assert sum(item.truth == "yes" for item in items) * 2 == len(items)
    assert load_shapes_probing(HELD_OUT) == items
    square = {item.questions[0]: item.truth for item in items if item.media.stem == "00000"}
    assert square["Is the square red?"] == "yes" and list(square.values()) == ["yes", "no", "yes", "no"]
    results, summary = scored("shapes-probing", items[:4], ["It is red, so yes.", "It is red, so no.", "no", "hm"])
    assert [verdict.right for _, verdict in results] == [True, True, False, False]
    assert summary["overall"]["all"]["hallucination resistance"] == 50.0
