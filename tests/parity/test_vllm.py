"""vLLM in the decoder's place says what our own decoder says. Runs where vLLM is installed (docs/gpu.md)."""

import pickle
import threading

import numpy as np
import pytest

from checkpoints import random_checkpoint
from conftest import MEDIA
from service.servers import serving
from videollama_converters.convert import convert
from videollama_core.engines.bundle import Bundle
from videollama_core.generation.language_models import load_runner
from videollama_core.generation.scheduler import GenerationRequest, Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.protocol.errors import Cancelled, InvalidRequest
from videollama_core.protocol.messages import ResolvedSampling

pytest.importorskip("vllm", reason="vllm is not installed: an environment of its own, docs/gpu.md")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's and its libraries' own
SLOTS = 3
# Heads of 32: vLLM's attention on a CPU has no kernel for the golden cases' odd sizes.
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    source = random_checkpoint("qwen2-siglip-16f", folder / "source", **SIZES)
    return Bundle.open(convert(source, folder / "bundle"))


@pytest.fixture(scope="module")
def vllm(bundle):
    from videollama_core.generation.vllm_runner import VllmRunner, VllmSteps

    scheduler = Scheduler(VllmSteps(VllmRunner(bundle, SLOTS)))
    scheduler.start()
    yield scheduler
    scheduler.close()


def test_beside_a_gpu_too_the_runner_is_one_that_takes_our_penalty(vllm, monkeypatch):
    """Where there is a GPU, vLLM takes another one by default, whose processors have another interface: no server started."""
    from vllm.config import vllm as config
    from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors_params_validator

    settings = vllm.steps.runner._engine.vllm_config
    monkeypatch.setattr(config, "HAS_TRITON", True)
    assert not settings.use_v2_model_runner
    with pytest.raises(ValueError, match="Penalty is not a subclass"):  # when this fails, the newer one may be taken
        build_custom_logits_processors_params_validator(settings.model_config.logits_processors)


def test_processes_that_share_the_layers_can_be_sent_our_penalty(vllm):
    """With tensor_parallel_size=2 a process that was not forked did not get it."""
    (processor,) = vllm.steps.runner._engine.vllm_config.model_config.logits_processors
    assert pickle.loads(pickle.dumps(processor)) is processor


class Listener:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.error: Exception | None = None
        self.first, self.ended = threading.Event(), threading.Event()

    def step(self, step) -> None:
        self.ids.append(step.token)
        self.first.set()
        if step.last:
            self.ended.set()

    def fail(self, error) -> None:
        self.error = error
        self.ended.set()


def submit(scheduler, name, ids, tokens=12, end_words=(), media=None, **changes):
    listener = Listener()
    sampling = {"greedy": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
    extra = {key: changes.pop(key) for key in ("is_cancelled", "pad_id", "return_logits") if key in changes}
    request = GenerationRequest(
        name,
        np.array(ids, np.int64),
        ResolvedSampling(max_new_tokens=tokens, **(sampling | changes)),
        tuple(end_words),
        listener.step,
        listener.fail,
        media=media,
        **extra,
    )
    scheduler.submit(request)
    return listener


def answer(scheduler, *arguments, **options) -> list[int]:
    listener = submit(scheduler, *arguments, **options)
    assert listener.ended.wait(120) and listener.error is None, listener.error
    return listener.ids


@pytest.fixture(scope="module")
def own(bundle):
    scheduler = Scheduler(SlotSteps(load_runner(bundle, SLOTS)))
    scheduler.start()
    yield scheduler
    scheduler.close()


@pytest.fixture(scope="module")
def media(bundle):
    return np.random.default_rng(0).normal(size=(7, bundle.config.language.width)).astype(np.float32)


def prompts(bundle, media):
    vocab = bundle.config.language.vocab_size
    texts = [list(range(5 + number, 40 + number)) for number in range(6)]
    return [(ids, None) for ids in texts[:3]] + [([*ids, *range(vocab, vocab + 7), 9], media) for ids in texts[3:]]


def test_the_same_ids_as_our_own_decoder_alone_and_together(bundle, own, vllm, media):
    """Six prompts, half of them with media, twice as many as there are slots."""
    expected = [answer(own, f"own-{n}", ids, media=table) for n, (ids, table) in enumerate(prompts(bundle, media))]
    together = [submit(vllm, f"t-{n}", ids, media=table) for n, (ids, table) in enumerate(prompts(bundle, media))]
    assert all(listener.ended.wait(120) for listener in together)
    assert [listener.ids for listener in together] == expected
    ids, table = prompts(bundle, media)[-1]
    assert answer(vllm, "alone", ids, media=table) == expected[-1]


def test_a_penalty_counts_what_was_generated(own, vllm):
    """Below 1 it favours what came before; a random model hardly ever says a token twice."""
    ids = list(range(20, 60))
    penalised = answer(own, "p", ids, tokens=24, repetition_penalty=0.3)
    assert penalised != answer(own, "q", ids, tokens=24)
    assert answer(vllm, "p", ids, tokens=24, repetition_penalty=0.3) == penalised


def test_an_answer_ends_at_an_end_word_and_frees_its_slot(own, vllm):
    ids = list(range(30, 50))
    whole = answer(own, "whole", ids)
    word = tuple(whole[3:5])
    end = next(place for place in range(len(whole)) if tuple(whole[place - 1 : place + 1]) == word) + 1
    for turn in range(SLOTS + 1):
        assert answer(vllm, f"end-{turn}", ids, end_words=[word]) == whole[:end]
    assert vllm.num_running == 0


def test_a_caller_that_leaves_frees_its_slot(vllm):
    left = threading.Event()
    leaver = submit(vllm, "leaver", list(range(40, 60)), tokens=1500, is_cancelled=left.is_set)
    assert leaver.first.wait(60)
    left.set()
    assert leaver.ended.wait(60) and isinstance(leaver.error, Cancelled) and vllm.num_running == 0
    stopped = submit(vllm, "stopped", list(range(40, 60)), tokens=1500)
    assert stopped.first.wait(60)
    vllm.stop("stopped")
    assert stopped.ended.wait(60) and isinstance(stopped.error, Cancelled)
    assert len(answer(vllm, "next", [1, 2, 3], tokens=5)) == 5


def test_the_same_seed_gives_the_same_ids(vllm):
    options = {"greedy": False, "temperature": 1.5, "tokens": 16}
    first, again, other = (
        answer(vllm, f"{seed}-{turn}", [5, 6, 7], seed=seed, **options) for turn, seed in enumerate((3, 3, 4))
    )
    assert first == again != other


def test_what_vllm_cannot_do_is_refused(vllm):
    with pytest.raises(InvalidRequest, match="return_generation_logits"):
        submit(vllm, "logits", [1, 2], return_logits=True)
    with pytest.raises(InvalidRequest, match="padding token"):
        submit(vllm, "pad", [1, 2], pad_id=2)


def test_a_server_with_vllm_answers_as_one_without(bundle, tmp_path, monkeypatch):
    """In one process, and in two that share the layers, started as beside a GPU that is in use: not forked."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    video = MEDIA / "plain_96x64.mp4"
    answers = []
    with_vllm = ("--llm", "vllm")
    for number, words in enumerate(((), with_vllm, (*with_vllm, "--vllm-arg", "tensor_parallel_size=2"))):
        with serving(bundle.root, tmp_path / f"{number}.log", *words) as server, server.client() as client:
            both = [client.ask(question, video=video, max_new_tokens=8) for question in ("What is it?", "And then?")]
            answers.append([answer.output_ids for answer in both])
            stream = client.stream("Tell a story", max_new_tokens=4000, stop=["never said"])
            with pytest.raises(Cancelled):
                for _ in stream:
                    stream.cancel()
            assert client.ask("Are you free?", max_new_tokens=1).usage.completion_tokens == 1
    assert answers[0] == answers[1] == answers[2]
