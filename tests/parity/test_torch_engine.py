"""The PyTorch engine (a GPU where there is one, the CPU here): every recorded case, and many requests at once."""

from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from test_golden_in_process import ALL, WITH_MEDIA, close, media_tokens, name, pipeline, prepared

from conftest import VARIANTS, cases, checkpoint, convert_once, torch_bundle
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder, to_host
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.scheduler import GenerationRequest, Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.generation.torch_runner import TorchRunner, TorchScores, load_decoder
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest
from videollama_core.protocol.messages import ResolvedSampling
from videollama_core.sampling import Sampler


@cache
def bundle(variant: str) -> Bundle:
    return Bundle.open(torch_bundle(variant))


@cache
def encoder(variant: str) -> MediaEncoder:
    return MediaEncoder(bundle(variant))


@cache
def runner(variant: str) -> TorchRunner:
    return TorchRunner(load_decoder(bundle(variant)), num_slots=4, max_length=4096)


def greedy(tokens: int, penalty: float = 1.0) -> ResolvedSampling:
    return ResolvedSampling(tokens, True, 1.0, 0, 1.0, penalty, 0)


@pytest.mark.parametrize("case", WITH_MEDIA, ids=name)
def test_media_tokens(case):
    media = prepared(case)
    assert case.close_to_tokens(encoder(case.variant).encode(media.frames, media.filterbank))


def test_tables_that_stay_where_they_are_made():
    """As tensors of the device, made once for equal media; the same as arrays."""
    (case, *_) = [one for one in WITH_MEDIA if one.uses_audio and one.modality == "video"]
    made, media = bundle(case.variant), prepared(case)
    keeping = MediaEncoder(Bundle(made.root, made.config, made.manifest | {"media_token_memory": "gpu"}))
    table, key = keeping.encode_media(media.frames, media.filterbank)
    assert isinstance(table, torch.Tensor) and table.is_contiguous()
    assert keeping.encode_media(media.frames.copy(), media.filterbank) == (table, key)
    plain, other = encoder(case.variant).encode_media(media.frames, media.filterbank)
    plain = to_host(plain)
    assert other == key
    assert np.array_equal(torch.from_dlpack(table).numpy(), plain) and case.close_to_tokens(plain)


@pytest.mark.parametrize("chunk", [10_000, 37])
@pytest.mark.parametrize("case", ALL, ids=name)
def test_logits_whole_and_by_chunks(case, chunk):
    ours, media = pipeline(case.variant), media_tokens(name(case))
    ids = ours.prompt(case.conversation, case.modality, 0 if media is None else len(media)).input_ids.astype(np.int64)
    visible = ids != ours.tokenizer.pad_id
    decoder = runner(case.variant)
    decoder.free(2)
    for begin in range(0, len(ids), chunk):
        part = slice(begin, begin + chunk)
        logits = decoder.prefill(2, ids[part], None if media is None else media.numpy(), visible[part])
    assert close(logits, case.tensor("prefill_logits"), case.logit_tolerance)


def test_no_value_of_one_request_reaches_the_next():
    """Values beyond a type's range become NaN, and an attention weight of zero for masked positions does not hide NaN."""
    decoder, ids = runner("mistral-clip-8f"), np.arange(3, 40)
    decoder.free(0)
    decoder.prefill(0, ids, None, np.ones(len(ids), bool))
    wanted = decoder.decode([0], [5])[0]
    for _ in range(2):
        decoder.free(0)
        decoder.prefill(0, ids[:9], None, np.ones(9, bool))
        scores = decoder.decode([0], [5])[0]
        decoder.free(0)
        media = np.full((60, decoder._config.width), np.nan, np.float32)
        decoder.prefill(0, decoder.vocab_size + np.arange(60), media, np.ones(60, bool))
    decoder.free(0)
    assert np.isfinite(scores).all()
    decoder.prefill(0, ids, None, np.ones(len(ids), bool))
    assert close(decoder.decode([0], [5])[0], wanted, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_of_many_requests_at_once(variant):
    """More requests than slots, joining and leaving: each gets the recorded ids."""
    ours, done = pipeline(variant), {}
    for slot in range(runner(variant).num_slots):  # other tests left something in them
        runner(variant).free(slot)
    scheduler = Scheduler(SlotSteps(runner(variant), prefill_chunk=64))
    wanted = [case for case in cases(variant) if not case.starts_from_pixels()]
    for case in wanted:
        media = media_tokens(name(case))
        prompt = ours.prompt(case.conversation, case.modality, 0 if media is None else len(media))
        done[case.name] = []
        scheduler.submit(
            GenerationRequest(
                request_id=case.name,
                input_ids=prompt.input_ids.astype(np.int64),
                sampling=greedy(case.max_new_tokens, ours.defaults.repetition_penalty),
                end_words=tuple((end,) for end in ours.defaults.end_ids),
                on_step=lambda step, name=case.name: done[name].append(step.token),
                on_error=pytest.fail,
                media=None if media is None else media.numpy(),
                pad_id=ours.tokenizer.pad_id,
            )
        )
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.iterate()
    assert done == {case.name: case.facts["output_ids"] for case in wanted}
    assert scheduler.counters.most_in_one_step >= 3


def test_a_slot_in_prefill_is_not_disturbed_by_the_others_steps():
    variant = "mistral-clip-8f"
    ids, seen = np.arange(5, 45), np.ones(40, bool)
    decoder = runner(variant)
    for slot in range(4):
        decoder.free(slot)
    whole = decoder.prefill(0, ids, None, seen)
    decoder.prefill(3, ids[:7], None, seen[:7])
    decoder.prefill(1, ids[:20], None, seen[:20])
    for token in range(9):  # rows 0 to 3 are computed, and only 3 is asked for
        decoder.decode([3], [token])
    assert np.allclose(decoder.prefill(1, ids[20:], None, seen[20:]), whole, atol=1e-5)


def test_a_slot_can_be_filled_to_its_last_position(bundle_of):
    """Beside a fuller neighbour whose step reads further than it writes."""
    decoder = TorchRunner(load_decoder(bundle("mistral-clip-8f")), num_slots=2, max_length=24)
    plain = OnnxRunner(Bundle.open(bundle_of("mistral-clip-8f")), num_slots=2, max_length=24)
    for one in (decoder, plain):
        one.prefill(0, np.arange(20), None, np.ones(20, bool))
        one.prefill(1, np.arange(3), None, np.ones(3, bool))
    for token in range(4):
        scores, wanted = decoder.decode([0, 1], [token, token + 9]), plain.decode([0, 1], [token, token + 9])
        assert all(np.allclose(scores[row], wanted[row], atol=1e-4) for row in (0, 1))
    decoder.decode([1], [5])  # slot 0 is full
    assert np.allclose(decoder.decode([1], [6])[0], [plain.decode([1], [t]) for t in (5, 6)][-1][0], atol=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 1.05, 1.7])
def test_the_best_tokens_are_the_samplers(penalty):
    random, scores = Random(0), torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    ours, plain = ([Sampler(greedy(9, penalty)) for _ in range(5)] for _ in range(2))
    for one, other in zip(ours, plain, strict=True):
        for token in random.choices(range(300), k=40):
            one.take(token)
            other.take(token)
    best = TorchScores(scores).best(ours)
    assert best == [sampler.choose(scores[row].numpy()) for row, sampler in enumerate(plain)]


def test_bfloat16_is_near_and_finite():
    """Whatever runs here: the type is the production's."""
    case = next(case for case in cases("qwen2-siglip-16f") if case.modality == "video")
    options = {"engine": "torch", "dtype": "bfloat16", "max_seq_len": 2048}
    made = Bundle.open(convert_once(checkpoint(case.variant), "torch-bfloat16", **options))
    tokens = MediaEncoder(made).encode(prepared(case).frames)
    wanted = case.tensor("connector_output")
    assert np.corrcoef(tokens.ravel(), wanted.ravel())[0, 1] > 0.999
    logits = TorchRunner(load_decoder(made), 1, 256).prefill(0, np.arange(9), None, np.ones(9, bool))
    plain = runner(case.variant)
    plain.free(0)
    assert np.corrcoef(logits, plain.prefill(0, np.arange(9), None, np.ones(9, bool)))[0, 1] > 0.999


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "abacus"}, "one of onnx, torch, tensorrt"),
        ({"engine": "onnx", "dtype": "bfloat16"}, "supports float32"),
        ({"engine": "torch", "dtype": "int3"}, "supports bfloat16"),
        ({"engine": "torch", "dtype": "float32", "max_seq_len": 10**6}, "supports 32768 positions"),
        ({"engine": "torch", "dtype": "float32", "max_seq_len": 20}, "media alone take"),
        ({"engine": "torch", "dtype": "float32", "slots": 0}, "1 to 1024"),
        ({"engine": "torch", "dtype": "float32", "media_token_memory": "gpu"}, "over gRPC.*use --engine tensorrt"),
        ({"engine": "tensorrt", "dtype": "float16", "media_token_memory": "tape"}, "one of cpu, gpu"),
    ],
)
def test_wrong_choices_fail_before_work_begins(options, reason, tmp_path):
    with pytest.raises(InvalidRequest, match=reason):
        convert(checkpoint("mistral-clip-8f"), tmp_path / "out", options=EngineOptions(**options))
    assert not list(tmp_path.glob("out/*"))


def test_an_engine_that_is_not_known_is_refused(tmp_path):
    made = bundle("mistral-clip-8f")
    other = Bundle(made.root, made.config, made.manifest | {"engine": "abacus"})
    with pytest.raises(ArtifactMismatch, match="abacus"):
        MediaEncoder(other)
