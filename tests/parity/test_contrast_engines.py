"""Visual contrastive decoding on every engine of ours against two plain forward passes in PyTorch."""

import numpy as np
import pytest
import torch
from test_golden_in_process import encoder, media_tokens, name, pipeline, prepared
from test_torch_engine import encoder as torch_encoder
from test_torch_engine import runner as torch_runner

from conftest import ROOT, case
from videollama_core import contrast as contrasting
from videollama_core.contrast import Noise, kept_variance
from videollama_core.engines import media_encoder as encode
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.request import GenerationRequest
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.media.video import Segment
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest
from videollama_core.protocol.messages import SamplingOptions

CASES = [
    case("mistral-clip-8f", "video_basic"),
    case("mixtral-clip-8f", "image"),
    case("qwen2-siglip-16f", "video_basic"),
    case("av-qwen2-siglip", "video_audio"),
]
TOKENS = 12
OPTIONS = SamplingOptions(max_new_tokens=TOKENS, vcd_alpha=1.0, vcd_beta=0.1, vcd_noise_step=500, seed=3)
DRAWN = SamplingOptions(max_new_tokens=TOKENS, vcd_alpha=0.5, vcd_beta=0.05, temperature=0.8, top_p=0.95, seed=11)


def noised_tokens(case, options: SamplingOptions) -> torch.Tensor:
    """Noise on normalised pixels, as the paper's code adds it: [N, D]."""
    ours, media = pipeline(case.variant), prepared(case)
    sampling = ours.defaults.resolve(options)
    kept = kept_variance(sampling.vcd_noise_step)
    numbers = np.random.default_rng((sampling.seed, contrasting._STREAM))
    noise = torch.from_numpy(numbers.standard_normal(media.frames.shape, np.float32)).permute(0, 3, 1, 2)
    normalise = ours.vision.normalise
    pixels = kept**0.5 * normalise(torch.from_numpy(np.ascontiguousarray(media.frames))) + (1 - kept) ** 0.5 * noise
    frames = list(range(len(pixels))) if len(pixels) > 1 else [0] * ours.config.num_frames
    try:
        ours.vision.normalise = lambda frames: pixels
        seen = ours.connector(ours.vision(torch.zeros(0)), torch.tensor(frames)).flatten(0, 1)
    finally:
        ours.vision.normalise = normalise
    return torch.cat([seen, ours.encode_audio(media.filterbank)]) if len(media.filterbank) else seen


@torch.inference_mode()
def greedy_ids(case_name: str, options: SamplingOptions, ids: list[int]) -> list[int]:
    """What is chosen after each prefix of `ids`, by two forward passes over the whole sequences: no cache, no batch.

    Ids that are all chosen so are those of greedy decoding; a pass for each of them would compute the same positions again.
    """
    case = next(one for one in CASES if name(one) == case_name)
    ours, tables = pipeline(case.variant), [media_tokens(case_name), noised_tokens(case, options)]
    prompt = ours.prompt(case.conversation, case.modality, len(tables[0]))
    scores = []
    for table in tables:
        embeds = torch.cat(
            [ours.inputs_embeds(prompt, table), ours.decoder.embed(torch.tensor([ids[:-1]]).long())], dim=1
        )
        length = embeds.shape[1]
        bias = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        past = torch.zeros(*ours_past_shape(ours))
        states, _ = ours.decoder.hidden_states(embeds, torch.arange(length)[None], bias[None, None], past)
        scores.append(ours.decoder.head(states.expand(len(ids), -1, -1), torch.arange(length - len(ids), length)))
    plain, noised = scores
    best = (1 + options.vcd_alpha) * plain - options.vcd_alpha * noised
    best[plain < plain.max(dim=-1, keepdim=True).values + np.log(options.vcd_beta)] = -torch.inf
    penalty = ours.defaults.repetition_penalty
    for step in range(len(ids)):
        for token in set(ids[:step]):
            score = best[step, token]
            best[step, token] = score / penalty if score > 0 else score * penalty
    return best.argmax(dim=-1).tolist()


def ours_past_shape(ours) -> tuple[int, ...]:
    config = ours.config.language
    return config.layers, 2, 1, config.kv_heads, 0, config.head_dim


def scheduled(case, media_encoder, runner, options=OPTIONS, times: int = 3) -> list[list[int]]:
    """The same question several times at once, with one without a contrast between; slots for less than all of them."""
    ours, inputs = pipeline(case.variant), prepared(case)
    sampling = ours.defaults.resolve(options)
    table = media_encoder.encode(inputs.frames, inputs.filterbank, Noise(sampling.vcd_noise_step, sampling.seed))
    prompt = ours.prompt(case.conversation, case.modality, len(table) // 2)
    for slot in range(runner.num_slots):
        runner.free(slot)
    scheduler, answers = Scheduler(SlotSteps(runner, prefill_chunk=50)), []

    def submit(sampling, media) -> None:
        answers.append([])
        scheduler.submit(
            GenerationRequest(
                request_id=str(len(answers)),
                input_ids=prompt.input_ids.astype(np.int64),
                sampling=sampling,
                end_words=tuple((end,) for end in ours.defaults.end_ids),
                on_step=lambda step, place=len(answers) - 1: answers[place].append(step.token),
                on_error=pytest.fail,
                media=media,
                pad_id=ours.tokenizer.pad_id,
            )
        )

    for _ in range(times):
        submit(sampling, table)
    submit(ours.defaults.resolve(SamplingOptions(max_new_tokens=case.max_new_tokens)), table[: len(table) // 2])
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.iterate()
    assert answers.pop() == case.facts["output_ids"]
    return answers


@pytest.mark.parametrize("case", CASES, ids=name)
@torch.inference_mode()
def test_noised_media_tokens(case, bundle_of):
    sampling = pipeline(case.variant).defaults.resolve(OPTIONS)
    noise, wanted, media = Noise(500, sampling.seed), noised_tokens(case, OPTIONS).numpy(), prepared(case)
    for made in (encoder(bundle_of(case.variant)), torch_encoder(case.variant)):
        table = made.encode(media.frames, media.filterbank, noise)
        assert len(table) == 2 * len(wanted) and np.abs(table[len(wanted) :] - wanted).max() < 1e-4
        assert np.array_equal(table[: len(wanted)], made.encode(media.frames, media.filterbank))
    assert np.abs(table[: len(wanted)] - wanted).max() > 0.01


@pytest.mark.parametrize("case", CASES, ids=name)
def test_greedy_ids_on_every_engine(case, bundle_of):
    kind, files = case.files()
    ours = pipeline(case.variant)
    wanted = ours.answer(case.conversation, kind, files, Segment(**case.segment), OPTIONS).output_ids
    assert wanted == greedy_ids(name(case), OPTIONS, wanted) != case.facts["output_ids"][:TOKENS]
    ends = [token in ours.defaults.end_ids for token in wanted]
    assert not any(ends[:-1]) and (ends[-1] or len(wanted) == TOKENS)
    onnx = OnnxRunner(Bundle.open(bundle_of(case.variant)), num_slots=5, max_length=4096)
    assert scheduled(case, encoder(bundle_of(case.variant)), onnx) == [wanted] * 3
    assert scheduled(case, torch_encoder(case.variant), torch_runner(case.variant)) == [wanted] * 3


def test_sampled_ids_are_the_seeds_on_every_engine(bundle_of):
    case = CASES[2]
    kind, files = case.files()
    wanted = pipeline(case.variant).answer(case.conversation, kind, files, Segment(**case.segment), DRAWN).output_ids
    onnx = OnnxRunner(Bundle.open(bundle_of(case.variant)), num_slots=5, max_length=4096)
    assert scheduled(case, encoder(bundle_of(case.variant)), onnx, DRAWN) == [wanted] * 3
    assert scheduled(case, torch_encoder(case.variant), torch_runner(case.variant), DRAWN) == [wanted] * 3


def test_noise_is_refused_where_it_is_not_possible(bundle_of, monkeypatch):
    media, made = prepared(CASES[3]), encoder(bundle_of("av-qwen2-siglip"))
    with pytest.raises(InvalidRequest, match="has no pixels"):
        made.encode(media.frames[:0], media.filterbank, Noise(500))
    with pytest.raises(InvalidRequest, match="has no pixels"):
        pipeline("av-qwen2-siglip").answer([{"role": "user", "content": "x"}], options=OPTIONS)
    bundle = Bundle.open(bundle_of("av-qwen2-siglip"))
    monkeypatch.setattr(encode, "load_encoders", lambda bundle: made._encoders)
    tensorrt = MediaEncoder(Bundle(bundle.root, bundle.config, bundle.manifest | {"engine": "tensorrt"}))
    with pytest.raises(InvalidRequest, match="TensorRT and vLLM do not"):
        tensorrt.encode(media.frames, media.filterbank, Noise(500))


def test_a_bundle_from_before_the_contrast_is_refused_for_noise(bundle_of, tmp_path):
    """Its graph takes uint8 pixels; everything else still works."""
    from videollama_converters.export.graphs import export_graph
    from videollama_core.checkpoint.parts import open_checkpoint
    from videollama_core.engines.specs import VISION_ENCODER

    case = CASES[0]
    old = tmp_path / "bundle"
    made = Bundle.open(bundle_of(case.variant))
    (old / "onnx").mkdir(parents=True)
    for path in (made.root / "onnx").iterdir():
        (old / "onnx" / path.name).symlink_to(path)
    parts = open_checkpoint(ROOT / "tests/golden" / case.variant / "checkpoint")
    graph = old / "onnx" / f"{VISION_ENCODER.name}.onnx"
    graph.unlink(), graph.with_name(graph.name + ".data").unlink()
    export_graph(VISION_ENCODER, parts.config, parts.vision_sources(), graph, lambda: None)
    aged = MediaEncoder(Bundle(old, made.config, made.manifest))
    media = prepared(case)
    assert case.close_to_tokens(aged.encode(media.frames, media.filterbank))
    with pytest.raises(ArtifactMismatch, match="convert again"):
        aged.encode(media.frames, media.filterbank, Noise(500))
