"""Prompts and their ids equal the reference's, and invalid prompts are refused."""

import hashlib

import numpy as np
import pytest

from conftest import VARIANTS, cases, checkpoint, language_folder
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.prompt import SYSTEM_TEXT, Prompt, check_length, render_prompt, tokenize_prompt
from videollama_core.protocol.errors import InvalidRequest, PromptTooLong
from videollama_core.text import Tokenizer

ALL = [case for variant in VARIANTS for case in cases(variant)]


def test_the_system_text_equals_the_references():
    assert len(SYSTEM_TEXT) == 524
    assert (
        hashlib.sha256(SYSTEM_TEXT.encode()).hexdigest()
        == "49223af9a1617ae999463de0b211dbe51de0570d32f6dfa307e69b6ddfeb8c97"
    )


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.variant}-{case.name}")
def test_prompt_and_ids_equal_the_reference(case):
    tokenizer, config = Tokenizer(language_folder(case.variant)), read_model_config(checkpoint(case.variant))
    prompt = render_prompt(tokenizer, config.language.family, case.conversation, case.modality)
    assert prompt == case.facts["prompt"]
    rows = 0
    if case.modality != "text":
        seen = 0 if case.modality == "audio" else config.media_tokens
        rows = seen + case.facts.get("num_audio_tokens", 0)
    built = tokenize_prompt(tokenizer, prompt, case.modality, rows, config.language.vocab_size)
    assert len(built.input_ids) == case.facts["num_prompt_embeddings"]
    media = [index for index in built.input_ids.tolist() if index >= config.language.vocab_size]
    assert media == list(range(config.language.vocab_size, config.language.vocab_size + rows))
    text = [index for index in built.input_ids.tolist() if index < config.language.vocab_size]
    assert text == [index for index in case.facts["input_ids"] if index >= 0]


@pytest.mark.parametrize("modality", ["video", "image"])
def test_text_with_its_own_placeholder_is_refused(modality):
    """The reference fails with an index error here."""
    tokenizer = Tokenizer(checkpoint("qwen2-clip-8f"))
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"see <{modality}>"}]
    with pytest.raises(InvalidRequest, match=f"<{modality}>"):
        render_prompt(tokenizer, "qwen2", conversation, modality)
    assert f"see <{modality}>" in render_prompt(tokenizer, "qwen2", conversation, "text")


def test_roles_that_the_template_refuses_are_an_invalid_request():
    conversation = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InvalidRequest, match="alternate"):
        render_prompt(Tokenizer(checkpoint("mistral-clip-8f")), "mistral", conversation, "text")


def test_a_prompt_must_leave_room_for_one_token():
    check_length(Prompt(np.zeros(99, np.int32), 54, 45, 9), 100)
    with pytest.raises(PromptTooLong, match="55 text and 45 media tokens; the context holds 100"):
        check_length(Prompt(np.zeros(100, np.int32), 55, 45, 9), 100)
