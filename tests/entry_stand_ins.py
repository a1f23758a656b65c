"""Small stand-ins for the stages around the entry, and a bundle that it can be opened on."""

import shutil
from dataclasses import asdict, replace

import numpy as np

from conftest import checkpoint
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.engines.bundle import Bundle
from videollama_core.media.video import Segment
from videollama_core.protocol.messages import SamplingOptions, as_conversation
from videollama_server.answers.known_media import Media, Perception, Pixels
from videollama_server.stages.entry import Entry, Question

VARIANT = "qwen2-clip-8f"


class Generation:
    """Yields what its script says once `Stages.work` reaches it."""

    def __init__(self, stages, script, listener) -> None:
        self.stages, self.script, self.listener, self.stopped = stages, list(script), listener, False

    def start(self) -> None:
        self.stages.work.append(self.go_on)

    def go_on(self) -> None:
        step = self.script.pop(0) if self.script else None
        if step is None or isinstance(step, Exception):
            self.listener.on_end(step)
        else:
            (self.listener.on_cached_tokens if isinstance(step, int) else self.listener.on_ids)(step)
            self.start()

    def stop(self) -> None:
        self.stopped = True


class Stages:
    """Perceives as many rows as the checkpoint has, and generates from the scripts, one script per call."""

    def __init__(self, *scripts, perceptions=()) -> None:
        self.scripts, self.perceptions = list(scripts), list(perceptions)
        self.asked, self.generations, self.traces = [], [], []
        self.perceived = self.prepared = 0
        self.work = []

    def perceive(self, media, noise, is_cancelled=None):
        self.noise, self.media = noise, media
        if self.perceptions and isinstance(error := self.perceptions.pop(0), Exception):
            raise error
        rows = read_model_config(checkpoint(VARIANT)).media_tokens * (1 if noise is None else 2)
        self.perceived += 1
        return Perception(
            np.zeros((1, rows, 56), np.float32), rows, 7, {"preprocess": (5.0, 6.0), "encoder": (6.5, 8.5)}
        )

    def preprocess(self, media, is_cancelled):
        self.prepared += 1
        return Pixels(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((0, 128), np.float32), (5.0, 6.0))

    def encode(self, pixels, noise, is_cancelled):
        seen = self.perceive(Media("image", (), Segment()), noise)
        return replace(seen, spans={"encoder": (6.5, 8.5)})

    def generate(self, request_id, prompt, seen, sampling, listener, traceparent):
        self.asked.append((request_id, prompt, seen, sampling))
        self.traces.append(traceparent)
        self.generations.append(Generation(self, self.scripts.pop(0), listener))
        return self.generations[-1]

    def later(self, seconds, call) -> None:
        self.work.append(call)


class Replied:
    """Records the reply to one question."""

    def __init__(self, is_cancelled=lambda: False) -> None:
        self.sent, self.error, self.is_cancelled = [], None, is_cancelled

    def send(self, piece) -> None:
        assert self.error is None and not (self.sent and self.sent[-1].summary), "something comes after the end"
        self.sent.append(piece)

    def fail(self, error) -> None:
        assert self.error is None
        self.error = error


def answer(entry, stages, question, is_cancelled=lambda: False):
    """Every piece. Raises: the error that the answer fails with."""
    replied = Replied(is_cancelled)
    answering = entry.answer(question, replied)
    while stages.work:
        if is_cancelled():
            answering.cancel()
        stages.work.pop(0)()
    if replied.error is not None:
        raise replied.error
    return replied.sent


def entry_bundle(tmp_path) -> Bundle:
    """The parts of a bundle that the entry reads."""
    shutil.copytree(checkpoint(VARIANT), tmp_path / "llm")
    config = read_model_config(checkpoint(VARIANT))
    return Bundle(tmp_path, config, {"max_seq_len": 200, "engine": "onnx"})


def run(bundle, stages, question, is_cancelled=lambda: False):
    sent = answer(Entry(bundle, stages), stages, question, is_cancelled)
    assert all(piece.summary is None for piece in sent[:-1])
    text = "".join(piece.text for piece in sent)
    return text, [index for piece in sent for index in piece.output_ids], asdict(sent[-1].summary)


def ask(text="Who?", **more) -> Question:
    return Question(as_conversation(text), more.pop("options", SamplingOptions()), **more)


IMAGE = {"kind": "image", "files": (b"x",)}
