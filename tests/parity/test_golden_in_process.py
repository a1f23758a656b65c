"""Every recorded case of every variant, in one process: plain PyTorch, and the converted graphs."""

from functools import cache

import numpy as np
import pytest
import torch

from conftest import FEATURE_TOLERANCE, LOGIT_TOLERANCE, SOUND_TOKEN_TOLERANCE, VARIANTS, Case, cases, checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import VISION_ENCODER
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.media.video import Segment, load_media
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.messages import EncoderInputs, SamplingOptions

ALL = [case for variant in VARIANTS for case in cases(variant)]
WITH_MEDIA = [case for case in ALL if case.modality != "text"]
SEEN = [case for case in WITH_MEDIA if case.modality != "audio"]
WITH_AUDIO = [case for case in WITH_MEDIA if case.uses_audio]


def name(case: Case) -> str:
    return f"{case.variant}-{case.name}"


@cache
def pipeline(variant: str) -> Pipeline:
    return Pipeline(checkpoint(variant))


def prepared(case: Case) -> EncoderInputs:
    if case.starts_from_pixels():
        return EncoderInputs(case.tensor("pixels_u8"), np.zeros((0, 128), np.float32), np.zeros(0), np.zeros(0))
    kind, files = case.files()
    return pipeline(case.variant).prepare(kind, files, Segment(**case.segment))


@cache
def media_tokens(case_name: str) -> torch.Tensor | None:
    case = next(one for one in ALL if name(one) == case_name)
    return None if case.modality == "text" else pipeline(case.variant).media_tokens(prepared(case))


def close(computed: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    return computed.shape == wanted.shape and float(np.abs(computed - wanted).max()) <= tolerance


@pytest.mark.parametrize("case", [one for one in SEEN if not one.starts_from_pixels()], ids=name)
def test_frames_and_pixels_are_exact(case):
    kind, files = case.files()
    kind = kind.removesuffix("_with_audio")
    frames = load_media(kind, files, Segment(**case.segment), pipeline(case.variant).config.num_frames)
    kept = case.facts.get("distinct_gif_frames_kept", case.facts.get("sampled_indices"))
    if kept is not None:
        assert frames.index[frames.index >= 0].tolist() == kept
    assert np.array_equal(prepared(case).frames, case.tensor("pixels_u8"))


@pytest.mark.parametrize("case", WITH_MEDIA, ids=name)
@torch.inference_mode()
def test_features_in_pytorch(case):
    ours = pipeline(case.variant)
    stored = case.tensor("vision_features")
    if stored is not None:
        frames = torch.from_numpy(np.ascontiguousarray(prepared(case).frames))
        assert close(ours.vision(frames).numpy(), stored[: len(frames)], FEATURE_TOLERANCE)
    assert case.close_to_tokens(media_tokens(name(case)).numpy())


@pytest.mark.parametrize("case", WITH_AUDIO, ids=name)
def test_filterbanks(case):
    filterbank, wanted = prepared(case).filterbank, case.tensor("fbank_bf16")
    assert np.mean(filterbank[:: case.facts["fbank_stride"]] != wanted) <= 3e-4
    assert filterbank.shape == (2998, 128)


@torch.inference_mode()
def test_audio_from_the_stored_filterbank():
    """Starting behind the decoder's and the rounding's small differences, the strict tolerances hold."""
    case = next(one for one in WITH_AUDIO if one.name == "audio_only")
    ours, stored = pipeline(case.variant), case.tensor("fbank_bf16")
    features = ours.audio.tower(torch.from_numpy(stored)[None])[0]
    assert close(features.numpy(), case.tensor("beats_output"), FEATURE_TOLERANCE)
    audio_tokens = ours.encode_audio(stored)
    prompt = ours.prompt(case.conversation, "audio", len(audio_tokens))
    assert close(ours.inputs_embeds(prompt, audio_tokens)[0].numpy(), case.tensor("inputs_embeds"), FEATURE_TOLERANCE)
    assert close(next(ours.logits(prompt, audio_tokens)), case.tensor("prefill_logits"), LOGIT_TOLERANCE)


@pytest.mark.parametrize("case", [one for one in ALL if one.tensor("pixel_values_first4") is not None], ids=name)
def test_normalised_pixels(case):
    ours = pipeline(case.variant).vision.normalise(torch.from_numpy(case.tensor("pixels_u8")[:4])).numpy()
    # The reference multiplies in float64 before it rounds: one unit in the last place of values up to 3.
    assert close(ours, case.tensor("pixel_values_first4"), 5e-7)


@pytest.mark.parametrize("case", ALL, ids=name)
@torch.inference_mode()
def test_logits_in_pytorch(case):
    ours = pipeline(case.variant)
    media = media_tokens(name(case))
    prompt = ours.prompt(case.conversation, case.modality, 0 if media is None else len(media))
    embeds = ours.inputs_embeds(prompt, media)
    stored = case.tensor("inputs_embeds")
    if stored is not None:
        assert close(embeds[0].numpy(), stored, SOUND_TOKEN_TOLERANCE if case.uses_audio else FEATURE_TOLERANCE)
    assert close(next(ours.logits(prompt, media)), case.tensor("prefill_logits"), case.logit_tolerance)


@pytest.mark.parametrize("case", [one for one in ALL if not one.starts_from_pixels()], ids=name)
def test_answers_in_pytorch(case):
    kind, files = case.files()
    answer = pipeline(case.variant).answer(
        case.conversation, kind, files, Segment(**case.segment), SamplingOptions(max_new_tokens=case.max_new_tokens)
    )
    assert answer.output_ids == case.facts["output_ids"] and answer.text == case.facts["text"]
    assert answer.finish_reason == ("stop" if case.facts["ended_by"] == "eos" else "length")


@cache
def encoder(root) -> MediaEncoder:
    return MediaEncoder(Bundle.open(root))


@pytest.mark.parametrize("case", WITH_MEDIA, ids=name)
def test_media_tokens_of_the_graphs(case, bundle_of):
    media = prepared(case)
    assert case.close_to_tokens(encoder(bundle_of(case.variant)).encode(media.frames, media.filterbank))


@pytest.mark.parametrize("variant", VARIANTS)
def test_vision_features_of_the_graph(variant, bundle_of):
    case = next(one for one in cases(variant) if one.tensor("vision_features") is not None and one.modality == "video")
    engine = OnnxEngine(
        Bundle.open(bundle_of(variant)).graph(VISION_ENCODER.name), VISION_ENCODER.inputs, VISION_ENCODER.outputs
    )
    features = engine.run({"frames": case.tensor("pixels_u8")})["vision_features"]
    assert close(features, case.tensor("vision_features"), FEATURE_TOLERANCE)


@cache
def runner(root) -> OnnxRunner:
    return OnnxRunner(Bundle.open(root), num_slots=1, max_length=4096)


@pytest.mark.parametrize("chunk", [10_000, 37])
@pytest.mark.parametrize("case", ALL, ids=name)
def test_logits_of_the_graphs_whole_and_by_chunks(case, chunk, bundle_of):
    ours = pipeline(case.variant)
    media = media_tokens(name(case))
    prompt = ours.prompt(case.conversation, case.modality, 0 if media is None else len(media))
    ids = prompt.input_ids.astype(np.int64)
    visible = ids != ours.tokenizer.pad_id
    decoder = runner(bundle_of(case.variant))
    decoder.free(0)
    for begin in range(0, len(ids), chunk):
        part = slice(begin, begin + chunk)
        logits = decoder.prefill(0, ids[part], None if media is None else media.numpy(), visible[part])
    assert close(logits, case.tensor("prefill_logits"), case.logit_tolerance)
