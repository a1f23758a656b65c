"""The encoder stage works in turns: what each run of the tower receives, when a request is done, and how much memory is held meanwhile."""

import importlib
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from conftest import checkpoint
from videollama_core.checkpoint.read_config import published_config, read_model_config
from videollama_core.engines import media_encoder
from videollama_core.engines.specs import MOST_FRAMES_PER_RUN, frames_per_run
from videollama_core.protocol.errors import Cancelled, InvalidRequest, StageDied
from videollama_server.sandbox.callers import FOLDER_VARIABLE

CONFIG = replace(read_model_config(checkpoint("qwen2-siglip-16f")), num_frames=4)
NOTES = [f"{number:032x}" for number in range(8)]


class Encoders:
    """A tower that returns each picture's first value, and overwrites its features as a replayed CUDA graph does."""

    def __init__(self, frames_per_run: int, shares_runs: bool) -> None:
        self.frames_per_run, self.shares_runs, self.runs = frames_per_run, shares_runs, []
        self._place = np.zeros((MOST_FRAMES_PER_RUN, 1, 1), np.float32)

    def encode_frames(self, frames):
        seen = frames[:, 0, 0, 0].astype(np.float32)
        self.runs.append(seen.tolist())
        self._place[: len(seen), 0, 0] = seen
        return self._place[: len(seen)]

    def connect(self, features, frame_index):
        return features[frame_index][::2].copy()

    def encode_audio(self, filterbank):
        return filterbank[:1, :1].copy()


def frames(*colours: int) -> np.ndarray:
    size = CONFIG.pixels.size
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Makes the stage, whose tower takes the given number of frames per run; every caller in NOTES waits."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for note in NOTES:
        (tmp_path / note).touch()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    names = [f"videollama_server.stages.{name}" for name in ("python_backend", "encoder")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(names[-1])

    def make(frames_per_run: int, shares_runs: bool = True):
        bundle = SimpleNamespace(
            config=CONFIG,
            keeps_media_tokens_on_gpu=False,
            encoder_engine=SimpleNamespace(takes_noise=True),
            language_engine=SimpleNamespace(is_backend=False),
        )
        monkeypatch.setattr(media_encoder, "load_encoders", lambda bundle: Encoders(frames_per_run, shares_runs))
        monkeypatch.setattr(module, "bundle_of", lambda args: bundle)
        made = module.EncoderStage()
        made.load({})
        return made

    yield make
    for name in names:
        sys.modules.pop(name, None)


def ask(stage, note=None, media=None, step=None):
    """The media tokens, or None for a turn that is not the last one."""
    outputs = stage.run(
        frames=media,
        filterbank=None,
        preprocess_span=None,
        vcd_noise_step=None if step is None else np.array([step]),
        seed=None,
        caller=None if note is None else np.array([note.encode()], np.object_),
    )
    assert outputs["prompt_embedding_table"].shape[1] == outputs["prompt_vocab_size"][0][0]
    return outputs["prompt_embedding_table"][0, :, 0].tolist() or None


def runs(stage) -> list:
    return stage.encoder._encoders.runs


def test_equal_requests_end_together(stage):
    """Each request asks again behind the others, so the last one ends one turn after the first."""
    made = stage(1)
    waiting = [(note, frames(*range(10 * n, 10 * n + 4))) for n, note in enumerate(NOTES[:4])]
    ended, turns = [], 0
    while waiting:
        note, media = waiting.pop(0)
        turns += 1
        table = ask(made, note, media)
        if table is None:
            waiting.append((note, None))
        else:
            ended.append((turns, table))
    assert [turn for turn, _ in ended] == [13, 14, 15, 16]
    assert [table for _, table in ended] == [[10.0 * n, 10.0 * n + 2] for n in range(4)]
    assert all(len(run) == 1 for run in runs(made))


def test_a_picture_waits_for_one_turn_of_a_video(stage):
    made = stage(1)
    assert ask(made, NOTES[0], frames(1, 2, 3, 4)) is None
    assert ask(made, NOTES[1], frames(9)) == [9.0, 9.0]
    assert runs(made) == [[1.0], [9.0]]


def test_free_rows_of_a_run_go_to_other_requests_and_every_run_has_one_shape(stage):
    made = stage(3)
    assert ask(made, NOTES[0], frames(1, 2, 3, 4)) is None
    assert ask(made, NOTES[1], frames(11, 12, 13, 14)) is None
    assert ask(made, NOTES[2], frames(9)) == [9.0, 9.0]  # a picture, by itself
    assert ask(made, NOTES[0]) == [1.0, 3.0]
    assert ask(made, NOTES[1]) == [11.0, 13.0]
    assert runs(made) == [[1.0, 2.0, 3.0], [11.0, 12.0, 13.0], [9.0], [4.0, 14.0, 0.0]]


def test_runs_that_are_not_shared_have_no_padding(stage):
    """On a CPU, where the time is proportional to the frames."""
    made = stage(3, shares_runs=False)
    assert ask(made, NOTES[0], frames(1, 2, 3, 4)) is None
    assert ask(made, NOTES[1], frames(11, 11, 13, 13)) == [11.0, 13.0]
    assert ask(made, NOTES[2], frames(9)) == [9.0, 9.0]
    assert ask(made, NOTES[0]) == [1.0, 3.0]
    assert runs(made) == [[1.0, 2.0, 3.0], [11.0, 13.0], [9.0], [4.0]]


def test_noised_pixels_share_runs_with_plain_pixels(stage):
    made = stage(3)
    table = None
    assert ask(made, NOTES[0], frames(1, 2, 3, 4), step=0) is None
    while table is None:
        table = ask(made, NOTES[0])
    assert len(table) == 4 and table[:2] == [1.0, 3.0] and table[2:] != table[:2]
    assert [len(run) for run in runs(made)] == [3, 3, 3, 3]


def test_a_request_without_a_note_is_answered_at_once(stage):
    made = stage(2)
    assert ask(made, NOTES[0], frames(1, 2, 3, 4)) is None
    assert ask(made, None, frames(5, 6, 7, 8)) == [5.0, 7.0]
    with pytest.raises(InvalidRequest, match="frames is missing"):
        ask(made)


def test_request_memory_is_not_read_after_its_turn(stage):
    made, media = stage(1), frames(1, 2, 3, 4)
    assert ask(made, NOTES[0], media) is None
    media[:] = 99
    while (table := ask(made, NOTES[0])) is None:
        pass
    assert table == [1.0, 3.0]


def test_a_cancelled_request_is_dropped_and_an_unknown_one_is_an_error(stage, tmp_path):
    made = stage(1)
    for note in NOTES[:2]:
        assert ask(made, note, frames(1, 2, 3, 4)) is None
    (tmp_path / NOTES[0]).unlink()
    with pytest.raises(Cancelled):
        ask(made, NOTES[0])
    assert list(made._active) == [NOTES[1]]
    with pytest.raises(StageDied):
        ask(made, NOTES[2])


def test_features_are_bounded_and_no_request_starves(stage, monkeypatch):
    made = stage(1)
    small = made.encoder.feature_bytes(made.encoder.begin(frames(1, 2, 3, 4)))
    monkeypatch.setattr(sys.modules[type(made).__module__], "FEATURE_BYTES", 2 * small)
    large = frames(*range(20, 26))
    assert ask(made, NOTES[0], frames(1, 2, 3, 4)) is None
    assert ask(made, NOTES[1], large) is None  # no room beside the first one, which is given the turn
    assert ask(made, NOTES[2], frames(31, 32, 33, 34)) is None  # there would be room, but the large one came first
    assert runs(made) == [[1.0], [2.0], [3.0]]
    assert ask(made, NOTES[1]) is None
    assert runs(made)[-1] == [4.0]
    assert ask(made, NOTES[0]) == [1.0, 3.0]  # made in another's turn
    assert ask(made, NOTES[2]) is None
    assert runs(made)[-1] == [20.0]  # the large one begins at last
    tables = {}
    while len(tables) < 2:
        for note in NOTES[1:3]:
            if note not in tables and (table := ask(made, note)) is not None:
                tables[note] = table
    assert tables == {NOTES[1]: [20.0, 22.0, 24.0], NOTES[2]: [31.0, 33.0]}


def test_a_run_is_one_frame_of_a_published_tower_on_a_cpu():
    for name in ("VideoLLaMA2-7B", "VideoLLaMA2.1-7B-16F"):
        assert frames_per_run(published_config(name).vision, on_gpu=False) == 1
        assert frames_per_run(published_config(name).vision, on_gpu=True) == MOST_FRAMES_PER_RUN
    assert frames_per_run(CONFIG.vision, on_gpu=False) == MOST_FRAMES_PER_RUN
