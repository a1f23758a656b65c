"""Requests on the language model's own socket: reading returns what was written."""

from dataclasses import fields

import numpy as np
import pytest

from videollama_core.prompt import Prompt
from videollama_core.protocol.messages import ResolvedSampling
from videollama_server.direct.request import DirectRequest

SAMPLING = ResolvedSampling(9, False, 0.7, 40, 0.9, 1.05, 2**64 - 1, 1.5, 0.2, 700)
PROMPT = Prompt(np.arange(5, 12, dtype=np.int32), 4, 3, 2)


@pytest.mark.parametrize(
    "media",
    [
        None,
        np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32),
        np.random.default_rng(0).normal(size=(70_000, 8)).astype(np.float16),
        np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)[::2, :4],  # not contiguous
    ],
)
def test_reading_returns_what_was_written(media):
    media_hash = 0 if media is None else 2**64 - 2
    request = DirectRequest("é7", PROMPT, SAMPLING, (2, 7), None, "00-x", media, media_hash)
    read = DirectRequest.from_bytes(bytearray(request.to_bytes()))
    for field in fields(DirectRequest):
        if field.name not in ("prompt", "media"):
            assert getattr(read, field.name) == getattr(request, field.name)
    assert (read.prompt.text_tokens, read.prompt.media_tokens, read.prompt.media_start) == (4, 3, 2)
    assert read.prompt.input_ids.dtype == np.int32
    np.testing.assert_array_equal(read.prompt.input_ids, PROMPT.input_ids)
    if media is None:
        assert read.media is None
    else:
        assert read.media.dtype == media.dtype and read.media.flags.writeable
        np.testing.assert_array_equal(read.media, media)


def test_an_empty_request():
    request = DirectRequest("", Prompt(np.zeros(0, np.int32), 0, 0, 0), ResolvedSampling(1, True), (), -1)
    assert DirectRequest.from_bytes(bytearray(request.to_bytes())).sampling == ResolvedSampling(1, True)


@pytest.mark.parametrize("request_id", ["", "1", "12", "123", "1234", "12345", "123456", "1234567"])
def test_the_arrays_are_aligned_whatever_is_before_them(request_id):
    request = DirectRequest(request_id, PROMPT, SAMPLING, (2, 7), None, media=np.ones((3, 8), np.float32), media_hash=1)
    read = DirectRequest.from_bytes(bytearray(request.to_bytes()))
    assert read.media.flags.aligned and read.prompt.input_ids.flags.aligned
