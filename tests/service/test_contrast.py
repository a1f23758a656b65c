"""Visual contrastive decoding through the running server: the plain pipeline's ids, with no effect on other requests."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from conftest import HELD_OUT, MEDIA, TINY_SHAPES, case, checkpoint
from service.servers import vl2
from service.test_golden_over_grpc import PERCEPTION_OUTPUTS, media_of, strings
from videollama_benchmarks.sources import in_process as in_process_answers
from videollama_benchmarks.tasks.hallucination import load_shapes_probing
from videollama_client import BadSampling, Cancelled, InvalidRequest
from videollama_core.media.video import Segment
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.messages import SamplingOptions

VARIANT = "qwen2-siglip-16f"
CASE = case(VARIANT, "video_basic")
GREEDY = {"max_new_tokens": 10, "vcd_alpha": 1.0, "vcd_noise_step": 500, "seed": 3}
DRAWN = {"max_new_tokens": 10, "vcd_alpha": 0.5, "vcd_beta": 0.25, "temperature": 0.8, "seed": 11}


@pytest.fixture(scope="module")
def server(server_of):
    return server_of(VARIANT)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(checkpoint(VARIANT))


def in_process(pipeline, options) -> list[int]:
    kind, files = CASE.files()
    segment = Segment(**CASE.segment)
    return pipeline.answer(CASE.conversation, kind, files, segment, SamplingOptions(**options)).output_ids


def ask(server, **options) -> list[int]:
    with server.client() as client:
        return client.ask(CASE.facts["instruct"], **media_of(CASE), **CASE.segment, **options).output_ids


def test_answers_equal_the_pipelines_and_plain_ones_are_unaffected(server, pipeline):
    """Many at a time, mixed, more sequences than the eight slots: the cache must not mix noised and plain tokens."""
    others = [GREEDY, DRAWN, GREEDY | {"seed": 4}, GREEDY | {"vcd_noise_step": 900}]
    wanted = [in_process(pipeline, options) for options in others]
    assert len({tuple(ids) for ids in wanted}) >= 3  # two of the noises may lead to the same words
    assert CASE.facts["output_ids"][:10] not in wanted
    plain = {"max_new_tokens": CASE.max_new_tokens}
    asked = [plain, *others, plain, plain | {"vcd_alpha": 0.0}] * 3
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda options: ask(server, **options), asked))
    golden = CASE.facts["output_ids"]
    assert answers == [golden, *wanted, golden, golden] * 3


def test_each_noise_has_its_own_table_and_hash(server):
    kind, files = CASE.files()
    media = {"media": strings(*files), "media_kind": strings(kind)}

    def perceive(*noise):
        names = (("vcd_noise_step", np.int32), ("seed", np.uint64))
        noised = {name: np.array([value], dtype) for (name, dtype), value in zip(names, noise, strict=False)}
        return server.call("perception", PERCEPTION_OUTPUTS, **media, **noised)

    plain, noised, other = perceive(), perceive(500, 1), perceive(500, 2)
    (rows,) = plain["prompt_vocab_size"][0]
    for outputs in (noised, other):
        assert outputs["prompt_vocab_size"] == 2 * rows
        assert np.array_equal(outputs["prompt_embedding_table"][0, :rows], plain["prompt_embedding_table"][0])
    assert not np.array_equal(noised["prompt_embedding_table"], other["prompt_embedding_table"])
    assert len({outputs["media_hash"].item() for outputs in (plain, noised, other)}) == 3
    assert np.array_equal(perceive(500, 1)["prompt_embedding_table"], noised["prompt_embedding_table"])
    assert np.array_equal(perceive()["prompt_embedding_table"], plain["prompt_embedding_table"])


def test_cancelling_frees_both_slots(server):
    with server.client() as client:
        streams = [
            client.stream(CASE.facts["instruct"], **media_of(CASE), max_new_tokens=1000, vcd_alpha=1.0, vcd_beta=0.0)
            for _ in range(6)  # four fill the slots, two wait
        ]
        with ThreadPoolExecutor(len(streams)) as pool:
            waiting = [pool.submit(list, stream) for stream in streams]
            next(iter(client.stream("Are you there?", max_new_tokens=1)), None)
            for stream in streams:
                stream.cancel()
            for one in waiting:
                assert isinstance(one.exception(60), Cancelled | type(None))
    assert server.settled("vl2_num_requests_running") == server.settled("vl2_num_requests_waiting") == 0
    assert ask(server, max_new_tokens=CASE.max_new_tokens) == CASE.facts["output_ids"]


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"vcd_alpha": 1.0}, InvalidRequest, "has no pixels"),
        ({"vcd_alpha": 1.0, "audio": MEDIA / "tone_16k_mono_4s.wav"}, InvalidRequest, "vcd_alpha"),
        ({"vcd_alpha": -1.0}, BadSampling, "vcd_alpha is -1.0"),
        ({"vcd_noise_step": 400}, BadSampling, "without vcd_alpha"),
    ],
)
def test_an_impossible_contrast_is_refused(server, options, kind, reason):
    with server.client() as client, pytest.raises(kind, match=reason):
        client.ask("What is there?", max_new_tokens=2, **options)


def test_an_evaluation_with_a_contrast(server_of, tmp_path):
    """It has its own journal and table, and the same answers as in one process."""
    words = ("eval", "shapes-probing", HELD_OUT, "--out", tmp_path / "out", "--limit", 8, "--vcd-alpha", 1.0)
    command = vl2(*words, "--url", server_of("tiny-shapes").grpc)
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0 and "hallucination resistance" in completed.stdout, completed.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["vcd_alpha"] == 1.0 and len(result["items"]) == 8
    answerer = in_process_answers(TINY_SHAPES, None, 32, None, vcd_alpha=1.0)
    items = load_shapes_probing(HELD_OUT)[:8]
    assert [answerer(item, item.questions[0]) for item in items] == [row["prediction"] for row in result["items"]]
    other = subprocess.run([*command, "--vcd-alpha", "2"], capture_output=True, text=True, timeout=120)
    assert other.returncode == 1 and "belongs to another run" in other.stderr


def test_the_command(server, pipeline):
    words = ("--vcd-alpha", 1.0, "--vcd-noise-step", 500, "--seed", 3, "--max-new-tokens", 10, "--json")
    command = vl2("ask", CASE.path, CASE.facts["instruct"], *words, "--url", server.grpc)
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["output_ids"] == in_process(pipeline, GREEDY)
