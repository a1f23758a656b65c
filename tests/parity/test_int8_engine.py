"""`--quantize int8`: the recorded scores within what int8 moves them, whatever else is in the step, and a smaller bundle."""

import json

import numpy as np
import pytest
import torch

from conftest import cases, checkpoint, convert_once
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions
from videollama_converters.export.compare import INT8_TOLERANCE, TOLERANCE
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.specs import DECODER
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.messages import EncoderInputs

# Of the largest recorded score: weights and inputs of each product are rounded to 255 levels, and these checkpoints' weights are
# random. In Mixtral a rounded score chooses another expert.
FAMILIES = {"mistral-clip-8f": 0.1, "mixtral-clip-8f": 0.5, "qwen2-siglip-16f": 0.1}


def int8_bundle(variant: str) -> Bundle:
    return Bundle.open(convert_once(checkpoint(variant), f"{variant}-int8", quantization="int8"))


@pytest.mark.parametrize(("variant", "tolerance"), FAMILIES.items())
def test_recorded_scores_whole_and_by_chunks(variant, tolerance):
    ours, runner = Pipeline(checkpoint(variant)), OnnxRunner(int8_bundle(variant), 1, 4096)
    for case in cases(variant):
        media = None
        if case.modality != "text":
            pixels = case.tensor("pixels_u8")
            with torch.inference_mode():
                media = ours.media_tokens(
                    EncoderInputs(pixels, np.zeros((0, 128), np.float32), np.zeros(0), np.zeros(0))
                )
        prompt = ours.prompt(case.conversation, case.modality, 0 if media is None else len(media))
        ids = prompt.input_ids.astype(np.int64)
        visible, table = ids != ours.tokenizer.pad_id, None if media is None else media.numpy()
        wanted, scores = case.tensor("prefill_logits"), []
        for chunk in (10_000, 37):
            runner.free(0)
            for begin in range(0, len(ids), chunk):
                part = slice(begin, begin + chunk)
                logits = runner.prefill(0, ids[part], table, visible[part])
            scores.append(logits)
        assert np.abs(scores[0] - wanted).max() <= tolerance * np.abs(wanted).max(), case.name
        assert np.abs(scores[0] - scores[1]).max() <= tolerance * np.abs(wanted).max(), case.name


@pytest.mark.parametrize("variant", FAMILIES)
def test_scores_do_not_depend_on_who_else_is_in_the_step(variant):
    runner = OnnxRunner(int8_bundle(variant), 4, 256)
    for slot in range(4):
        runner.prefill(slot, np.arange(5 + slot), None, np.ones(5 + slot, bool))
    kept = [runner.keep(slot) for slot in range(4)]
    scores = runner.decode([0, 1, 2, 3], [7, 8, 9, 10])
    together = [scores[row].copy() for row in range(4)]
    for slot in range(4):
        runner.free(slot)
        runner.begin(slot, kept[slot], 5 + slot)
        assert (
            np.abs(runner.decode([slot], [7 + slot])[0] - together[slot]).max() <= 0.01 * np.abs(together[slot]).max()
        )


def test_another_choice_makes_the_decoder_again_and_nothing_else(tmp_path):
    class Seen:
        def __init__(self) -> None:
            self.made: list[str] = []

        def start(self, task: str, total: int) -> None:
            self.task = task

        def advance(self) -> None:
            pass

        def done(self, reused: bool) -> None:
            if not reused:
                self.made.append(self.task)

    source, out = checkpoint("mixtral-clip-8f"), tmp_path / "out"
    reading = ["checking the checkpoint", "reading the checkpoint"]
    sizes = {}
    for quantization, steps in (("", None), ("int8", ["decoder", "parity"]), ("int8", []), ("", ["decoder", "parity"])):
        seen = Seen()
        convert(source, out, progress=seen, options=EngineOptions(quantization=quantization))
        assert steps is None or seen.made == [*reading, *steps]
        bundle = Bundle.open(out)
        assert bundle.quantization == quantization
        sizes[quantization] = sum(
            entry["bytes"]
            for name, entry in bundle.manifest["files"].items()
            if name.endswith(f"{DECODER.name}.onnx.data")
        )
        report = {entry["graph"]: entry for entry in json.loads((out / "parity.json").read_text())}
        assert (
            report["decoder"]["difference"]
            <= report["decoder"]["tolerance"]
            == (INT8_TOLERANCE if quantization else TOLERANCE)
        )
        assert report["connector"]["tolerance"] == TOLERANCE
    assert sizes["int8"] < sizes[""]
