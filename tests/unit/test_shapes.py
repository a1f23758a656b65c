"""The synthetic world: what makes its questions fair."""

import json
from random import Random

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.model.vision import VisionEncoder
from videollama_training.shapes import tower
from videollama_training.shapes.cli import shapes as shapes_command
from videollama_training.shapes.make import make_media
from videollama_training.shapes.questions import ask, ask_image
from videollama_training.shapes.sounds import (
    BEEP_SECONDS,
    CLIP_SECONDS,
    MIXED,
    PITCHES,
    RATE,
    ask_sound,
    ask_sounding,
    draw_sound,
    draw_sounding_scene,
    is_held_out_sound,
    render_sound,
    write_sounding_clip,
)
from videollama_training.shapes.start import make_start
from videollama_training.shapes.tower import NOTHING, patch_labels, pretrain_tower
from videollama_training.shapes.world import (
    ACTIONS,
    COLOURS,
    REVERSED,
    SCENES,
    SHAPES,
    SIDE,
    SIZES,
    Actor,
    draw_picture,
    draw_scene,
    is_held_out,
    render_clip,
    render_frame,
)


def scenes(kind, number=60, held_out=False):
    random = Random(f"{kind} {held_out}")
    return [draw_scene(random, kind, held_out) for _ in range(number)]


@pytest.mark.parametrize("kind", SCENES)
def test_training_never_shows_a_held_out_combination(kind):
    assert not any(is_held_out(actor) for scene in scenes(kind) for actor in scene.actors)
    if kind != "count":  # still things are all trained
        assert all(is_held_out(scene.actors[0]) for scene in scenes(kind, held_out=True))
    assert not any(is_held_out(actor) for seed in range(60) for actor in draw_picture(Random(seed)).actors)


def test_every_pair_of_a_held_out_combination_is_trained():
    """Shape with colour, shape with action, colour with action: only the three together are new."""
    trained = [
        (shape, colour, action)
        for shape in SHAPES
        for colour in COLOURS
        for action in ACTIONS
        if not is_held_out(Actor(shape, colour, "small", action, (0, 0), (0, 0)))
    ]
    for left, right in ((0, 1), (0, 2), (1, 2)):
        wanted = [len(values) for values in (SHAPES, COLOURS, ACTIONS)]
        assert len({(triple[left], triple[right]) for triple in trained}) == wanted[left] * wanted[right]


def centre_of_mass(frame, ground):
    rows, columns = np.nonzero(np.abs(frame.astype(int) - ground).sum(-1) > 60)
    return columns.mean(), rows.mean(), len(rows)


@pytest.mark.parametrize(
    ("action", "axis", "sign"),
    [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1), ("growing", 2, 1), ("shrinking", 2, -1)],
)
def test_pixels_show_what_the_caption_says(action, axis, sign):
    matching = [s for s in scenes("motion", 400) if s.actors[0].action == action and len(s.actors) == 1]
    assert matching
    for scene in matching[:5]:
        clip = render_clip(scene)
        first, last = (centre_of_mass(frame, scene.ground)[axis] for frame in (clip[0], clip[-1]))
        assert sign * (last - first) > 20


@pytest.mark.parametrize("kind", ["appearance", "order", "change"])
def test_events_happen_when_the_caption_says(kind):
    for scene in scenes(kind, 20):
        actor = scene.actors[0]
        clip = render_clip(scene)
        seen = [bool((np.abs(frame.astype(int) - COLOURS[actor.colour]).sum(-1) < 30).any()) for frame in clip]
        if actor.action in ("appearing", "disappearing"):
            assert seen[0] == (actor.action == "disappearing") and seen[-1] == (actor.action == "appearing")
        else:  # the first of two, or the colour before
            assert any(seen[:16]) and not any(seen[24:])


@pytest.mark.parametrize("kind", ["motion", "appearance", "order", "change"])
def test_temporal_answers_cannot_be_guessed_without_the_order_of_frames(kind):
    """Over many scenes an action and its reverse are equally frequent, so unordered frames leave two answers."""
    actions = [scene.actors[0].action for scene in scenes(kind, 1200)]
    for action in set(actions) - {"still", "turning", "first"}:
        share = actions.count(action) / (actions.count(action) + actions.count(REVERSED[action]))
        assert 0.38 < share < 0.62


@pytest.mark.parametrize("kind", SCENES)
def test_questions_are_distinct_and_complete(kind):
    random = Random(5)
    for scene in scenes(kind, 30):
        items = ask(scene, random, 8)
        assert len({item.question for item in items}) == 8
        for item in items:
            assert item.question and item.answer
            if item.form == "choice":
                letter = item.answer[-2]
                option = next(line for line in item.question.splitlines() if line.startswith(f"({letter})"))
                assert item.answer in (f"it is {option[4:]}: ({letter})", f"it {option[4:]}: ({letter})")
            if item.form == "yes/no":
                assert item.answer.endswith((", so yes", ", so no"))


def test_temporal_yes_no_questions_ask_about_an_action_or_its_reverse():
    """Any other action could be ruled out from unordered frames."""
    random = Random(6)
    for scene in scenes("motion", 100):
        for item in ask(scene, random, 8):
            if item.topic == "motion" and item.form == "yes/no":
                verbs = {"left": "left", "right": "right", "up": "up", "down": "down"}
                verbs |= {"growing": "grow", "shrinking": "shrink"}
                action = scene.actors[0].action
                assert verbs[action] in item.question or verbs[REVERSED[action]] in item.question


def test_questions_about_a_picture_call_it_a_picture():
    scene = scenes("count")[0]
    assert not any("video" in item.question for item in ask_image(scene, Random(1), 8))


def test_the_same_number_and_seed_make_the_same_clip(tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(make_media(tmp_path / name, 3, seed=9, held_out=False))
    assert made[0] == made[1]
    first, second = (next((tmp_path / name).iterdir()).read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_frame_equals_what_the_service_decodes():
    frame = np.asarray(render_frame(scenes("count")[0], 0.5))
    assert frame.shape == (128, 128, 3) and frame.dtype == np.uint8


def peaks(samples):
    """Number of separate loud stretches, and the loudest frequency in hertz."""
    loud = np.convolve(np.abs(samples), np.ones(400) / 400, "same") > 0.05
    number = int(np.sum(np.diff(loud.astype(int)) == 1) + loud[0])
    return number, float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


def test_sounds_match_the_caption():
    random = Random(3)
    for held_out in (False, True):
        for _ in range(40):
            sound = draw_sound(random, held_out)
            number, frequency = peaks(render_sound(sound))
            assert is_held_out_sound(sound) == held_out
            if sound.kind == "silence":
                assert number == 0
            else:
                assert number == (len(sound.beeps) or 1)
            if sound.pitch == MIXED:
                assert set(sound.pitches) == set(PITCHES) and not held_out
                heard = [
                    render_sound(sound)[round(start * RATE) :][: round(BEEP_SECONDS * RATE)] for start in sound.beeps
                ]
                for piece, pitch in zip(heard, sound.pitches, strict=True):
                    assert abs(peaks(piece)[1] - PITCHES[pitch]) < 10
            elif sound.pitch:
                assert abs(frequency - PITCHES[sound.pitch]) < 10
            if sound.glide:
                halves = [peaks(half)[1] for half in np.array_split(render_sound(sound), 2)]
                assert (halves[1] > halves[0]) == (sound.glide == "rising")
            assert all(item.question and item.answer for item in ask_sound(sound, random))


def test_beeps_sound_while_their_object_is_shown(tmp_path):
    random = Random(4)
    for _ in range(30):
        sounding = draw_sounding_scene(random, held_out=False)
        for actor, beeps in zip(sounding.scene.actors, sounding.beeps, strict=True):
            low, high = (moment * CLIP_SECONDS for moment in actor.moment)
            assert all(low <= start and start + BEEP_SECONDS <= high + 1e-9 for start in beeps)
    while not sum(map(len, sounding.beeps)):
        sounding = draw_sounding_scene(random, held_out=False)
    write_sounding_clip(tmp_path / "clip.mp4", sounding)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert peaks(samples)[0] == sum(map(len, sounding.beeps))
    questions = [item.topic for item in ask_sounding(sounding)]
    assert questions.count("sound and picture") >= 2


def test_the_command_writes_every_kind(tmp_path):
    words = ["--out", str(tmp_path), "--pictures", "2", "--clips", "3", "--held-out", "2", "--audio-samples", "40"]
    result = CliRunner().invoke(shapes_command, words)
    assert result.exit_code == 0, result.output
    for name in ("pictures", "train", "held_out", "sounds", "sounds_held_out"):
        for entry in json.loads((tmp_path / f"{name}.json").read_text()):
            kind = next(kind for kind in ("video", "image", "audio") if kind in entry)
            assert (tmp_path / entry[kind]).is_file()
    assert (tmp_path / "start/model.safetensors").is_file()


def test_patches_are_labelled_with_the_object_that_covers_them():
    scene = next(s for s in scenes("motion", 400) if s.actors[0].action == "right" and len(s.actors) == 1)
    actor, grid = scene.actors[0], 8
    for time in (0.0, 1.0):
        x, y = actor.centre(time)
        labels = patch_labels(scene, time, grid).reshape(grid, grid, 3)
        shape, colour, size = labels[int(y * grid / SIDE), int(x * grid / SIDE)]
        assert SHAPES[shape - 1] == actor.shape and list(COLOURS)[colour - 1] == actor.colour
        assert list(SIZES)[size - 1] == actor.size
        assert (labels == NOTHING).sum() > 3 * grid * grid / 2


def test_the_tower_learns_its_labels(tmp_path, monkeypatch):
    """A few small steps suffice to beat chance (one in five); the same seed gives the same weights."""
    monkeypatch.setattr(tower, "BATCH", 16)
    words = ["hello"]
    for name in ("a", "b"):
        make_start(tmp_path / name, words, seed=1, tower_steps=2)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    config = read_model_config(tmp_path / "a")
    torch.manual_seed(0)
    assert pretrain_tower(VisionEncoder(config.vision, config.pixels), config.pixels, steps=160, seed=1) > 0.3  # 0.42
