"""Streams: pieces join to the whole, whatever is split; many at once; the same media twice."""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from safetensors.torch import load_file, save_file

from checkpoints import random_checkpoint
from conftest import MEDIA, case, checkpoint
from service.servers import serving
from videollama_client import AsyncClient, VideoLlamaError
from videollama_client.client import AnswerStream
from videollama_converters.convert import convert
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.prompt import render_prompt, tokenize_prompt
from videollama_core.protocol.messages import as_conversation
from videollama_core.text import Tokenizer

# A letter of 2 bytes, a CJK character of 3, an emoji of 4; no byte comes twice, so that each token has one successor.
SCRIPT = "caf\u00e9 \u56f3\U0001f389!"


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """A server whose model emits SCRIPT, one token per byte, and then ends.

    Attention and feed-forward are zero, so a position's state is its token's embedding; the head scores the successor of
    each token of the script highest. Everything else is the ordinary pipeline.
    """
    folder = tmp_path_factory.mktemp("scripted")
    source = random_checkpoint("qwen2-clip-8f", folder / "source", hidden_size=256, num_hidden_layers=1)
    tokenizer = Tokenizer(source)
    single = {tokenizer.token_bytes(i): i for i in reversed(range(1000)) if len(tokenizer.token_bytes(i)) == 1}
    chain = [single[bytes([byte])] for byte in SCRIPT.encode()]
    assert len(set(chain)) == len(chain)
    last_prompt_token = tokenizer.encode("<|im_start|>assistant\n")[-1]
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(1024, 256, generator=generator), dim=1) * 16
    head = torch.zeros(1024, 256)
    for token, successor in zip([last_prompt_token, *chain], [*chain, tokenizer.token_id("eos_token")], strict=True):
        head[successor] += embeddings[token]
    for name, tensor in tensors.items():
        if ".o_proj." in name or ".down_proj." in name:
            tensors[name] = torch.zeros_like(tensor)
    tensors |= {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}
    save_file(tensors, source / "model.safetensors")
    with serving(convert(source, folder / "bundle"), folder / "log", "--expose-ensemble") as server:
        yield server, len(chain) + 1


def test_characters_split_over_tokens_arrive_whole(scripted):
    server, tokens = scripted
    with server.client() as client:
        answer = client.ask("say it", repetition_penalty=1.0)
        pieces = list(client.stream("say it", repetition_penalty=1.0))
    assert answer.text == SCRIPT and answer.finish_reason == "stop" and answer.usage.completion_tokens == tokens
    assert "".join(pieces) == SCRIPT
    assert "\U0001f389" in "".join(pieces) and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) < tokens  # bytes of one character wait for each other
    # The static ensemble wants media; this model does not look at it.
    image = np.array([(MEDIA / "image_90x50.png").read_bytes()], np.object_)
    asked = {
        "question": np.array([b"say it"], np.object_),
        "media": image,
        "media_kind": np.array([b"image"], np.object_),
    }
    whole = server.call("ensemble", ["text"], repetition_penalty=np.array([1.0], np.float32), **asked)
    assert whole["text"][0].decode() == SCRIPT


@pytest.mark.parametrize("stop", ["\U0001f389", " \u56f3", "!"])
def test_a_stop_string_ends_the_text(scripted, stop):
    server, _ = scripted
    with server.client() as client:
        stream = client.stream("say it", stop=[stop], repetition_penalty=1.0)
        pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == SCRIPT.split(stop)[0].rstrip()
    assert stream.answer.finish_reason == "stop"


@pytest.mark.parametrize("variant", ["mistral-clip-8f", "qwen2-siglip-16f"])
def test_sampled_text_streams_to_the_text_of_its_ids(variant, server_of):
    """Sampling at high temperature gives single bytes and broken UTF-8; pieces still join to the decoding of all ids."""
    tokenizer = Tokenizer(checkpoint(variant))
    with server_of(variant).client() as client:
        for seed in range(6):
            options = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "seed": seed, "max_new_tokens": 60}
            stream = client.stream("Say anything", **options)
            text = "".join(stream)
            assert text == stream.answer.text == tokenizer.decode(stream.answer.output_ids).strip()
            assert client.ask("Say anything", **options).output_ids == stream.answer.output_ids  # the seed decides


def test_eight_questions_at_once_are_answered_as_if_alone(server_of):
    server = server_of("mistral-clip-8f")
    media = [
        {"video": MEDIA / "plain_96x64.mp4"},
        {"image": MEDIA / "image_90x50.png"},
        {},
        {"video": MEDIA / "vfr_80x60.mp4"},
    ]
    questions = [(f"Question number {n}: what is it?", media[n % 4], 16 + 5 * n) for n in range(8)]

    def ask(client, question):
        text, what, tokens = question
        return client.ask(text, **what, max_new_tokens=tokens).output_ids

    with server.client() as client:
        alone = [ask(client, question) for question in questions]
        steps = server.settled("vl2_llm_decode_steps_total")
        together: list = [None] * 8
        start = threading.Barrier(8)

        def work(number):
            start.wait()
            together[number] = ask(client, questions[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert together == alone
    shared = server.settled("vl2_llm_decode_steps_total") - steps
    assert shared < sum(len(ids) - 1 for ids in alone)  # some steps were for several requests


def test_the_async_client_does_the_same(server_of):
    server, known = server_of("qwen2-clip-8f"), case("qwen2-clip-8f", "video_basic")

    async def work():
        async with AsyncClient(server.grpc) as client:
            assert await client.health()
            await client.wait_until_ready(5)
            ask = client.ask(known.facts["instruct"], video=known.path, max_new_tokens=known.max_new_tokens)
            answers = await asyncio.gather(ask, client.ask("Who are you?", max_new_tokens=5))
            stream = client.stream(known.facts["instruct"], video=known.path, max_new_tokens=known.max_new_tokens)
            pieces = [piece async for piece in stream]
            return answers, pieces, await stream.answer()

    (answer, _), pieces, streamed = asyncio.run(work())
    assert answer.output_ids == streamed.output_ids == known.facts["output_ids"]
    assert "".join(pieces) == known.facts["text"]


def runs(server) -> tuple[int, int]:
    """Executions of preprocess and encoder."""
    with triton.InferenceServerClient(server.grpc) as client:
        statistics = [client.get_inference_statistics(stage).model_stats[0] for stage in ("preprocess", "encoder")]
    return statistics[0].inference_count, statistics[1].inference_count


def cached(server) -> tuple[float, float]:
    """Hits and misses."""
    hits, queries = server.settled("vl2_mm_cache_hits_total"), server.settled("vl2_mm_cache_queries_total")
    return hits, queries - hits


def common_positions(one: str, other: str, media_tokens: int) -> int:
    """The number of positions that the prompts of two questions about the same video share at the start."""
    folder = checkpoint("qwen2-clip-8f")
    tokenizer, language = Tokenizer(folder), read_model_config(folder).language
    prompts = []
    for question in (one, other):
        text = render_prompt(tokenizer, language.family, as_conversation(question), "video")
        prompts.append(tokenize_prompt(tokenizer, text, "video", media_tokens, language.vocab_size).input_ids)
    return next(place for place, ids in enumerate(zip(*prompts, strict=False)) if ids[0] != ids[1])


def test_a_second_question_about_the_same_video_runs_neither_stage_and_reuses_the_prompt(server_of):
    server = server_of("qwen2-clip-8f")
    video = (MEDIA / "sample_demo_3.mp4").read_bytes()
    with server.client() as client:
        before, (hits, misses) = runs(server), cached(server)
        first = client.ask("What is it?", video=video, max_new_tokens=4)
        assert runs(server) == (before[0] + 1, before[1] + 1)
        names = [f"vl2_prefix_cache_{name}_total" for name in ("queries", "hits")]
        counted = [server.settled(name) for name in names]
        second = client.ask("And what is this?", video=video, max_new_tokens=4)
        assert runs(server) == (before[0] + 1, before[1] + 1)
        prompt = second.usage.prompt_tokens + second.usage.media_tokens
        alike = common_positions("What is it?", "And what is this?", first.usage.media_tokens)
        assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, alike) and alike > 45
        assert [server.settled(name) - before for name, before in zip(names, counted, strict=True)] == [prompt, alike]
        assert first.seconds["encoder"] > 0 == second.seconds["encoder"] == second.seconds["preprocess"]
        client.ask("And this part?", video=video, start=1.0, max_new_tokens=4)
        assert runs(server) == (before[0] + 2, before[1] + 2)
    assert cached(server) == (hits + 1, misses + 2) and server.metric("vl2_mm_cache_bytes") > 0


def test_ten_callers_with_the_same_new_video_share_one_run(server_of):
    server = server_of("qwen2-clip-8f")
    video = (MEDIA / "sample_demo_1.mp4").read_bytes() + b"new to this server"
    before, (hits, misses) = runs(server), cached(server)
    with server.client() as client, ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(client.ask, "What is it?", video=video, max_new_tokens=4) for _ in range(10)]
        assert len({tuple(one.result(60).output_ids) for one in asked}) == 1
    assert runs(server) == (before[0] + 1, before[1] + 1) and cached(server) == (hits + 9, misses + 1)


def test_text_only_questions_skip_perception(server_of):
    server = server_of("qwen2-clip-8f")
    before = runs(server)
    with server.client() as client:
        assert "encoder" not in client.ask("Who are you?", max_new_tokens=4).seconds
    assert runs(server) == before


def test_raw_frames_and_their_pictures_are_equivalent(server_of):
    """An array, a list of arrays and a list of encoded pictures give the same answer."""
    frames = np.random.default_rng(3).integers(0, 256, (8, 40, 60, 3), np.uint8)
    with server_of("qwen2-clip-8f").client() as client:
        answers = [client.ask("What?", video=video, max_new_tokens=12).output_ids for video in (frames, list(frames))]
        assert answers[0] == answers[1]
        assert client.ask("What?", image=frames[0], max_new_tokens=3).usage.media_tokens > 0


def test_entry_and_ensemble_agree_whatever_outputs_are_requested(server_of):
    server, video = server_of("qwen2-clip-8f"), (MEDIA / "three_frames_80x44.mp4").read_bytes()
    media = {"media": np.array([video], np.object_), "media_kind": np.array([b"video"], np.object_)}
    asked = media | {"question": np.array([b"x"], np.object_), "max_new_tokens": np.array([6], np.int32)}
    for outputs in (["prompt_vocab_size"], ["media_hash", "perception_spans"]):
        assert set(server.call("perception", outputs, **media)) == set(outputs)
    with server.client() as client:
        texts = {server.call("ensemble", ["text"], **asked)["text"][0].decode()}
        texts |= {client.ask("x", video=video, max_new_tokens=6).text for _ in range(2)}
    assert len(texts) == 1


def test_a_full_entry_refuses_at_once_and_serves_again(server_of):
    """Of 80 callers with long answers, 64 are accepted and the others refused at once; when all cancel, the server is
    free.
    """
    server = server_of("mixtral-clip-8f")
    options = {"max_new_tokens": 20000, "temperature": 4.0, "top_k": 0, "top_p": 1.0, "stop": ["never said"]}
    outcomes: list[str] = []
    streams: dict[int, AnswerStream] = {}

    def ask(number: int) -> None:
        while True:  # again when the story was told before the others had come: the entry stays full
            streams[number] = client.stream(f"Tell story {number}", seed=number, **options)
            try:
                assert streams[number].answer
            except VideoLlamaError as error:
                outcomes.append(error.kind)
                return

    with server.client() as client:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(80)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while outcomes.count("Overloaded") < 16 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert outcomes.count("Overloaded") >= 16, Counter(
            outcomes
        )  # more when a place that a told story leaves is not free yet
        assert server.metric("vl2_num_requests_running") <= 8
        left = time.monotonic() + 20
        while any(thread.is_alive() for thread in threads) and time.monotonic() < left:
            for stream in list(streams.values()):
                stream.cancel()
            time.sleep(0.05)
        assert set(outcomes) == {"Overloaded", "Cancelled"} and len(outcomes) == 80
        while server.metric("vl2_running_requests", model="videollama2") and time.monotonic() < left:
            time.sleep(0.05)
        assert client.ask("And now?", max_new_tokens=1).usage.completion_tokens == 1
