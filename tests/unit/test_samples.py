"""The reference's training data: what is read, and what is refused with the sample's name and the reason."""

import json

import pytest

from conftest import MEDIA, checkpoint
from videollama_core.protocol.errors import BadSample
from videollama_core.text import Tokenizer
from videollama_training.data.samples import Sample, read_sample, read_samples
from videollama_training.data.tokens import MEDIA as PLACE
from videollama_training.data.tokens import tokenize

GOOD = {
    "id": "one",
    "video": "plain_96x64.mp4",
    "conversations": [{"from": "human", "value": "What?\n<video>"}, {"from": "gpt", "value": "That."}],
}


def entry(**changes):
    return {key: value for key, value in (GOOD | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"video": "gone.mp4"}, "gone.mp4 is missing"),
        ({"video": 7}, "video is 7; expected the path"),
        ({"image": "desert.jpg"}, "it has video and image; a sample may have only one"),
        ({"conversations": []}, "its conversation is empty"),
        ({"conversations": None}, "its conversation is empty"),
        ({"conversations": GOOD["conversations"][:1]}, "it has 1 messages"),
        ({"conversations": GOOD["conversations"][::-1]}, "it has 1 messages from the first question on"),
        ({"conversations": [GOOD["conversations"][1]] * 3}, "message 1 is from 'gpt'; expected 'human'"),
        (
            {"conversations": [{"from": "human", "value": "What?"}, GOOD["conversations"][1]]},
            "no question has <video>",
        ),
        ({"conversations": GOOD["conversations"] * 2}, "messages 0 and 2 have <video>; expected exactly one"),
        (
            {"conversations": [{"from": "human", "value": "<vid<video>eo>"}, GOOD["conversations"][1]]},
            "messages 0 and 0",
        ),
        ({"conversations": [GOOD["conversations"][0], {"from": "gpt", "value": " "}]}, "message 1 is an empty answer"),
        ({"conversations": [GOOD["conversations"][0], {"from": "gpt", "value": None}]}, "message 1 is from 'gpt'"),
        ({"conversations": ["What?", "That."]}, "message 0 is from 'str'"),
        ({"video": None, "audio": "gone.wav"}, "gone.wav is missing"),
        ({"audio": "tone_16k_mono_4s.wav"}, "it has video and audio; a sample may have only one"),
        ({"video": None, "image": "desert.jpg", "with_audio": True}, "with_audio is set for image"),
    ],
)
def test_a_bad_sample_is_named_with_its_reason(changes, reason):
    with pytest.raises(BadSample) as caught:
        read_sample(entry(**changes), 3, MEDIA)
    assert "sample one: " in str(caught.value) and reason in str(caught.value)


def test_a_sample_without_id_is_named_by_its_index():
    with pytest.raises(BadSample, match="sample #3: "):
        read_sample(entry(id=None, video="gone.mp4"), 3, MEDIA)
    with pytest.raises(BadSample, match="sample #3: it is list"):
        read_sample([], 3, MEDIA)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read as JSON"),
        (b"{}", "holds dict; expected a list of samples"),
        (b"[]", "holds an empty list"),
    ],
)
def test_a_file_that_is_not_a_list_of_samples_is_refused(tmp_path, content, reason):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(BadSample, match=reason):
        list(read_samples(tmp_path / "data.json", tmp_path))
    with pytest.raises(BadSample, match="cannot be read"):
        list(read_samples(tmp_path / "gone.json", tmp_path))


def test_bad_samples_are_reported_in_order_among_good_ones(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([entry(), entry(video="gone.mp4"), entry(id="three")]))
    samples = list(read_samples(tmp_path / "data.json", MEDIA))
    assert [type(one) for one in samples] == [Sample, BadSample, Sample]


def test_the_placeholder_moves_to_the_front_of_its_message():
    """Wherever it was, the prompt is that of inference: placeholder, newline, question."""
    tokenizer = Tokenizer(checkpoint("qwen2-siglip-16f"))
    variants = set()
    for value in ("<video>\nWhat?", "What?\n<video>", "What?<video>", "<video> What? <video>"):
        messages = [{"from": "human", "value": value}, {"from": "gpt", "value": "That."}]
        tokens = tokenize(read_sample(entry(conversations=messages), 0, MEDIA), tokenizer)
        variants.add((tuple(tokens.ids), tuple(tokens.is_target)))
    assert len(variants) == 1
    ids, _ = variants.pop()
    prompt = tokenizer.render([{"role": "user", "content": "<video>\nWhat?"}])
    left, right = map(tokenizer.encode, prompt.split("<video>"))
    assert list(ids[: len(left) + 1 + len(right)]) == [*left, PLACE, *right]


@pytest.mark.parametrize("variant", ["qwen2-siglip-16f", "mistral-clip-8f", "mistral-clip-16f"])
def test_only_the_assistants_tokens_are_predicted(variant):
    tokenizer = Tokenizer(checkpoint(variant))
    turns = (("<image>\nFirst question?", "First answer."), ("And then?", "Second answer."))
    tokens = tokenize(Sample("one", "image", MEDIA / "desert.jpg", "<image>", turns), tokenizer)
    runs: list[list[int]] = []
    for place, (token, wanted) in enumerate(zip(tokens.ids, tokens.is_target, strict=True)):
        if wanted:
            if not (place and tokens.is_target[place - 1]):
                runs.append([])
            runs[-1].append(token)
    assert [tokenizer.decode(run).strip() for run in runs] == ["First answer.", "Second answer."]
    assert all(tokenizer.token_id("eos_token") in run for run in runs)  # ending is learned too


def test_pretraining_predicts_question_and_caption():
    tokenizer = Tokenizer(checkpoint("mistral-clip-8f"))
    sample = Sample("one", "image", MEDIA / "desert.jpg", "<image>", (("<image>\nDescribe.", "A desert."),))
    tokens = tokenize(sample, tokenizer, "plain")
    assert tokens.ids[0] == PLACE and not tokens.is_target[0] and all(tokens.is_target[1:])
    assert tokenizer.decode(tokens.ids[1:]) == "\nDescribe. A desert."


def test_audio_pretraining_predicts_only_the_answer():
    tokenizer = Tokenizer(checkpoint("av-qwen2-siglip"))
    sample = Sample("one", "audio", MEDIA / "tone_16k_mono_4s.wav", "<audio>", (("<audio>\nDescribe.", "A tone."),))
    tokens = tokenize(sample, tokenizer, "placeholder")
    wanted = [token for token, is_wanted in zip(tokens.ids, tokens.is_target, strict=True) if is_wanted]
    assert tokenizer.decode(wanted).strip() == "A tone."
    assert "Describe" not in tokenizer.decode([token for token in tokens.ids if token != PLACE])


def test_a_picture_is_an_image_whatever_its_key_and_placeholder():
    for value in ("<image>\nWhat?", "<video>\nWhat?"):
        messages = [{"from": "human", "value": value}, GOOD["conversations"][1]]
        sample = read_sample(entry(video="desert.jpg", conversations=messages), 0, MEDIA)
        assert sample.kind == "image" and sample.turns[0][0] == value
