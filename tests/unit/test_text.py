"""Text <-> ids: the reference's ids and text, streamed pieces, stop strings, incomplete tokenizers."""

import random

import pytest

from conftest import VARIANTS, checkpoint, golden, language_folder
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest
from videollama_core.text import AnswerText, Tokenizer

PLACEHOLDER_IDS = {"<image>": -200, "<video>": -201, "<audio>": -202}
LLAMA, QWEN = "mistral-clip-8f", "qwen2-siglip-16f"


def tokenizer(variant: str) -> Tokenizer:
    return Tokenizer(language_folder(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ids_equal_the_reference(variant):
    ours = tokenizer(variant)
    for entry in golden(variant)["tokenization"]:
        placeholder, ids = entry["placeholder"], []
        for number, piece in enumerate(entry["prompt"].split(placeholder) if placeholder else [entry["prompt"]]):
            ids += ([PLACEHOLDER_IDS[placeholder]] if number else []) + ours.encode(piece)
        assert ids == entry["ids"], entry["prompt"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_equals_the_reference_invalid_bytes_included(variant):
    """The golden texts come from the slow tokenizers, which differ from the fast ones on bytes that are not UTF-8."""
    ours = tokenizer(variant)
    for entry in golden(variant)["detokenization"]:
        assert ours.decode(entry["ids"]) == entry["text"]


def byte_ids(ours: Tokenizer, text: str) -> list[int]:
    """The text as one id per byte, so that every non-ASCII character is split over tokens."""
    single = {ours.token_bytes(index): index for index in reversed(range(1000)) if len(ours.token_bytes(index)) == 1}
    return [single[bytes([byte])] for byte in text.encode()]


TEXTS = (
    "caf\u00e9 \u56f3\u306e\u4e2d \U0001f389 ok",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a  b\n\n c",
    "  \u00fcber  ",
)


@pytest.mark.parametrize("variant", [LLAMA, QWEN])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_whole_whatever_the_split(variant, text):
    """Emoji and CJK split over tokens: a piece never holds part of a character, and nothing is lost."""
    ours = tokenizer(variant)
    ids = byte_ids(ours, text)
    generator = random.Random(0)
    for _ in range(20):
        answer, pieces, place = AnswerText(ours), [], 0
        while place < len(ids):
            step = generator.randint(1, 4)
            pieces.append(answer.push(ids[place : place + step]))
            place += step
        pieces.append(answer.finish())
        assert "".join(pieces) == text.strip()
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("variant", [LLAMA, QWEN])
def test_random_ids_stream_to_the_text_of_all_at_once(variant):
    ours = tokenizer(variant)
    generator = random.Random(1)
    for _ in range(200):
        ids = [generator.randrange(1000) for _ in range(generator.randrange(1, 40))]
        answer = AnswerText(ours)
        assert "".join([answer.push([index]) for index in ids] + [answer.finish()]) == ours.decode(ids).strip()


def stop_at(text: str, *stop: str) -> tuple[str, bool]:
    ours = tokenizer(QWEN)
    answer = AnswerText(ours, stop)
    pieces = [answer.push([index]) for index in byte_ids(ours, text)]
    return "".join([*pieces, answer.finish()]), answer.stopped


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one two three", ("two",), ("one", True)),
        ("one two three", ("twx",), ("one two three", False)),
        ("aab aac", ("aac", "zz"), ("aab", True)),
        ("abcabd", ("abd",), ("abc", True)),
        ("stop", ("stop",), ("", True)),
        ("ends with st", ("stop",), ("ends with st", False)),
        ("x\n\nQ: y", ("\n\nQ:",), ("x", True)),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stop, wanted):
    assert stop_at(text, *stop) == wanted


def test_an_incomplete_tokenizer_folder_is_refused(tmp_path):
    source = checkpoint(QWEN)
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    with pytest.raises(Exception, match=r"tokenizer_config\.json is missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactMismatch, match="chat template"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ArtifactMismatch, match="missing"):
        Tokenizer(tmp_path)


def test_the_template_cannot_reach_python(tmp_path):
    """A checkpoint's template is untrusted data: it runs in a sandbox."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint(QWEN) / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest, match="template"):
        Tokenizer(tmp_path).render([{"role": "user", "content": "x"}])
