"""The PyTorch engine on a GPU: every recorded case, and recorded CUDA graphs equal to what they recorded."""

import numpy as np
import pytest
import torch

from conftest import ROOT, VARIANTS, cases, checkpoint
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.generation.scheduler import GenerationRequest, Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.generation.torch_runner import TorchRunner, load_decoder
from videollama_core.media.video import Segment
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.messages import ResolvedSampling

torch.backends.cuda.matmul.allow_tf32 = False  # the recorded numbers are float32
torch.backends.cudnn.allow_tf32 = False
RELATIVE = 1e-3  # of float32 on a GPU against float32 on a CPU


@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_cases(variant, device):
    options = EngineOptions(engine="torch", dtype="float32", max_seq_len=4096, slots=8)
    bundle = Bundle.open(convert(checkpoint(variant), ROOT / "build/tests" / f"{variant}-torch-gpu", options=options))
    encoder, runner = MediaEncoder(bundle), TorchRunner(load_decoder(bundle, device), 8, 4096)
    plain, done = Pipeline(checkpoint(variant)), {}
    scheduler = Scheduler(SlotSteps(runner, prefill_chunk=256))
    wanted = [case for case in cases(variant) if not case.starts_from_pixels()]
    for case in wanted:
        kind, files = case.files()
        media = None
        if kind is not None:
            prepared = plain.prepare(kind, files, Segment(**case.segment))
            once = encoder.encode(prepared.frames, prepared.filterbank)
            for _ in range(3):  # the second call records, the third replays
                media = encoder.encode(prepared.frames, prepared.filterbank)
                assert np.allclose(media, once, atol=RELATIVE * np.abs(once).max())
            seen = case.tensor("connector_output")
            if seen is not None:
                assert np.abs(media[: len(seen)] - seen).max() <= RELATIVE * max(1.0, np.abs(seen).max())
        prompt = plain.prompt(case.conversation, case.modality, 0 if media is None else len(media))
        done[case.name] = []
        scheduler.submit(
            GenerationRequest(
                request_id=case.name,
                input_ids=prompt.input_ids.astype(np.int64),
                sampling=ResolvedSampling(case.max_new_tokens, True, 1.0, 0, 1.0, plain.defaults.repetition_penalty, 0),
                end_words=tuple((end,) for end in plain.defaults.end_ids),
                on_step=lambda step, name=case.name: done[name].append(step.token),
                on_error=pytest.fail,
                media=media,
                pad_id=plain.tokenizer.pad_id,
            )
        )
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.iterate()
    assert done == {case.name: case.facts["output_ids"] for case in wanted}
