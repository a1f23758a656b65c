"""Every recorded case of every variant, through the running server."""

import json

import numpy as np
import pytest

from conftest import CHAT_VARIANTS, FEATURE_TOLERANCE, MEDIA, VARIANTS, cases, golden
from videollama_client import BadSegment, InvalidRequest
from videollama_core.protocol.contract import PERCEPTION

ALL = [case for variant in VARIANTS for case in cases(variant)]
# The public entry refuses a reversed segment; the reference silently swaps it (in process, and in `perception`, so do we).
REVERSED = "segment_swapped"
PERCEPTION_OUTPUTS = [tensor.name for tensor in PERCEPTION.outputs]


def name(case) -> str:
    return f"{case.variant}-{case.name}"


def media_of(case) -> dict:
    """Arguments of `ask`."""
    sound = {"with_audio": True} if case.uses_audio and case.modality == "video" else {}
    return {} if case.modality == "text" else {case.modality: case.source()} | sound


def strings(*items: bytes | str) -> np.ndarray:
    return np.array([item.encode() if isinstance(item, str) else item for item in items], np.object_)


@pytest.mark.parametrize(
    "case", [one for one in ALL if not one.starts_from_pixels() and one.name != REVERSED], ids=name
)
def test_the_public_entry_answers_like_the_reference(case, server_of):
    with server_of(case.variant).client() as client:
        answer = client.ask(
            case.facts["instruct"], **media_of(case), **case.segment, max_new_tokens=case.max_new_tokens
        )
    assert answer.output_ids == case.facts["output_ids"]
    assert answer.text == case.facts["text"]
    assert answer.finish_reason == ("stop" if case.facts["ended_by"] == "eos" else "length")
    usage = answer.usage
    assert usage.prompt_tokens + usage.media_tokens == case.facts["num_prompt_embeddings"]
    assert usage.completion_tokens == len(case.facts["output_ids"])
    assert {"prompt", "prefill", "decode", "total"} <= set(answer.seconds)
    kept = case.facts.get("distinct_gif_frames_kept", case.facts.get("sampled_indices"))
    if kept is not None and case.modality == "video":
        assert [frame.index for frame in answer.frames] == kept
    assert (case.modality == "video") == bool(answer.frames)


def test_more_frames_and_keyframes_are_used_on_request(server_of):
    """This checkpoint uses 8 frames by default; each choice has its own entry in the cache."""
    video = MEDIA / "1034346401.mp4"  # 444 frames in groups of 250
    with server_of(CHAT_VARIANTS[0]).client() as client:
        seen = {
            ways: [frame.index for frame in client.ask("?", video=video, max_new_tokens=1, **dict(ways)).frames]
            for ways in ((), (("num_frames", 16),), (("sampling", "keyframes"),), ())
        }
        with pytest.raises(InvalidRequest, match="num_frames is 4; this checkpoint takes 8"):
            client.ask("?", video=video, num_frames=4)
        with pytest.raises(InvalidRequest, match="num_frames needs a video"):
            client.ask("?", image=MEDIA / "image_90x50.png", num_frames=8)
    assert [len(frames) for frames in seen.values()] == [8, 16, 8]
    assert set(seen[("sampling", "keyframes"),]) == {0, 250} and len(set(seen[()])) == 8


@pytest.mark.parametrize("case", ALL, ids=name)
def test_every_stage_equals_the_reference(case, server_of):
    """preprocess -> encoder -> prompt -> tensorrt_llm, each called on its own with plain tritonclient."""
    server = server_of(case.variant)
    kind, files = case.files()
    table = {}
    if kind is not None:
        seen = {"frames": case.tensor("pixels_u8")}
        if not case.starts_from_pixels():
            bounds = {key: np.array([value], np.float64) for key, value in case.segment.items()}
            seen = server.call(
                "preprocess",
                ["frames", "filterbank", "frame_index"],
                media=strings(*files),
                media_kind=strings(kind),
                **bounds,
            )
            kept = case.facts.get("distinct_gif_frames_kept", case.facts.get("sampled_indices"))
            if kept is not None:
                assert [index for index in seen["frame_index"].tolist() if index >= 0] == kept
            if case.modality != "audio":
                assert np.array_equal(seen["frames"], case.tensor("pixels_u8"))
        seen.pop("frame_index", None)
        table = server.call("encoder", ["prompt_embedding_table", "prompt_vocab_size", "media_hash"], **seen)
        (tokens,) = table["prompt_embedding_table"]
        assert case.close_to_tokens(tokens) and table["prompt_vocab_size"] == len(tokens)
    asked = {
        "messages": strings(json.dumps(case.conversation)),
        "max_new_tokens": np.array([case.max_new_tokens], np.int32),
    }
    if kind is not None:
        asked |= {"media_kind": strings(kind), "prompt_vocab_size": table["prompt_vocab_size"]}
        asked["media_hash"] = table.pop("media_hash")
    names = [
        "input_ids",
        "input_lengths",
        "request_output_len",
        "end_id",
        "pad_id",
        "stop_words_list",
        "runtime_top_k",
        "repetition_penalty",
        "prompt_table_extra_ids",
    ]
    prompt = server.call("prompt", names, **asked)
    assert prompt["input_ids"].shape == (1, case.facts["num_prompt_embeddings"])
    extra = prompt["prompt_table_extra_ids"]
    assert extra.shape == prompt["input_ids"].shape
    assert np.count_nonzero(extra) == (0 if kind is None else table["prompt_vocab_size"].item())
    outputs = server.call(
        "tensorrt_llm",
        ["output_ids", "sequence_length", "generation_logits"],
        **prompt,
        **table,
        return_generation_logits=np.array([[True]]),
    )
    assert outputs["output_ids"].reshape(-1).tolist() == case.facts["output_ids"]
    assert outputs["sequence_length"] == len(case.facts["output_ids"])
    assert np.abs(outputs["generation_logits"][0, 0, 0] - case.tensor("prefill_logits")).max() <= case.logit_tolerance


def test_a_reversed_segment_is_refused_by_the_entry_and_corrected_by_the_stage(server_of):
    case = next(one for one in ALL if one.name == REVERSED)
    server = server_of(case.variant)
    with server.client() as client, pytest.raises(BadSegment, match="swap"):
        client.ask("x", video=case.source(), **case.segment)
    kind, files = case.files()
    bounds = {key: np.array([value], np.float64) for key, value in case.segment.items()}
    seen = server.call("perception", PERCEPTION_OUTPUTS, media=strings(*files), media_kind=strings(kind), **bounds)
    assert np.abs(seen["prompt_embedding_table"][0] - case.tensor("connector_output")).max() <= FEATURE_TOLERANCE


@pytest.mark.parametrize(
    "case",
    [one for one in ALL if one.name in ("video_basic", "image", "multi_turn", "audio_only", "video_audio")],
    ids=name,
)
def test_the_static_ensemble_gives_the_same_text(case, server_of):
    """The joined stream equals the single response of `ensemble`."""
    server = server_of(case.variant)
    kind, files = case.files()
    outputs = server.call(
        "ensemble",
        ["text", "output_ids"],
        messages=strings(json.dumps(case.conversation)),
        media=strings(*files),
        media_kind=strings(kind),
        max_new_tokens=np.array([case.max_new_tokens], np.int32),
    )
    assert outputs["text"][0].decode() == case.facts["text"]
    assert outputs["output_ids"].reshape(-1).tolist() == case.facts["output_ids"]
    with server.client() as client:
        pieces = list(client.stream(case.facts["instruct"], **media_of(case), max_new_tokens=case.max_new_tokens))
    assert "".join(pieces) == case.facts["text"]


def test_all_recorded_variants_are_tested():
    assert [golden(variant)["variant"] for variant in VARIANTS] == list(VARIANTS)
    assert len(ALL) == 23 + 9 + 9 + 10 + 9 + 9 + 9 + 9
