"""Recorded answers with the KV cache of an earlier question, on every engine of ours."""

import numpy as np
import pytest
from test_golden_in_process import media_tokens, name, pipeline
from test_torch_engine import bundle as torch_bundle
from test_torch_engine import greedy

from conftest import VARIANTS, cases
from videollama_core.engines.bundle import Bundle
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.prefixes import SHORTEST
from videollama_core.generation.request import GenerationRequest
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.generation.torch_runner import TorchRunner, load_decoder


def request(case, number: int, answer: list[int], end: str) -> GenerationRequest:
    ours, media = pipeline(case.variant), media_tokens(name(case))
    *before, last = case.conversation
    conversation = [*before, {"role": "user", "content": last["content"] + end}]
    prompt = ours.prompt(conversation, case.modality, 0 if media is None else len(media))
    return GenerationRequest(
        request_id=f"{case.name}-{number}",
        input_ids=prompt.input_ids.astype(np.int64),
        sampling=greedy(case.max_new_tokens, ours.defaults.repetition_penalty),
        end_words=tuple((end,) for end in ours.defaults.end_ids),
        on_step=lambda step: answer.append(step.token),
        on_error=pytest.fail,
        media=None if media is None else media.numpy(),
        pad_id=ours.tokenizer.pad_id,
    )


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_answers_are_those_recorded(variant, engine, bundle_of):
    """Another question about the same media first, then twice the recorded one, all of them at once."""
    if engine == "torch":
        runner = TorchRunner(load_decoder(torch_bundle(variant)), num_slots=3, max_length=4096)
    else:
        runner = OnnxRunner(Bundle.open(bundle_of(variant)), num_slots=3, max_length=4096)
    scheduler = Scheduler(SlotSteps(runner, prefill_chunk=64))
    wanted = [case for case in cases(variant) if not case.starts_from_pixels()]
    answers: dict[tuple[str, int], list[int]] = {}
    requests = []
    for case in wanted:
        for number, end in enumerate((" Why?", "", "")):
            answers[case.name, number] = []
            requests.append(request(case, number, answers[case.name, number], end))
    for one in requests:
        scheduler.submit(one)
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.iterate()
    for case in wanted:
        assert answers[case.name, 1] == answers[case.name, 2] == case.facts["output_ids"], case.name
    long = [len(one.input_ids) for one in requests if len(one.input_ids) > 2 * SHORTEST]
    # What follows the media differs in the first repetition; of the second, all but the last position is there.
    assert scheduler.counters.prefix_hits >= 2 * len(long) / 3
    assert scheduler.counters.prompt_positions < sum(len(one.input_ids) for one in requests) / 2
