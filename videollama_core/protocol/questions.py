"""Questions as they are received: their size is checked before they are parsed, and any bad content is a typed error."""

from collections.abc import Sequence
from json import JSONDecodeError, JSONDecoder

from videollama_core.protocol.errors import BadSampling, InvalidRequest
from videollama_core.protocol.limits import (
    MESSAGES,
    MESSAGES_BYTES,
    QUESTION_CHARACTERS,
    REQUEST_ID_CHARACTERS,
    STOP_CHARACTERS,
    STOP_STRINGS,
    Limit,
)
from videollama_core.protocol.messages import Conversation, as_conversation

_MOST_BYTES_OF_CHARACTER = 4  # in UTF-8
_JSON = JSONDecoder()
_SPACE = " \t\r\n"  # of JSON


def read_text(data: bytes, name: str, most: Limit) -> str:
    """Decode a UTF-8 string of at most `most` characters. Raises: InvalidRequest."""
    if len(data) > most.value * _MOST_BYTES_OF_CHARACTER:
        raise InvalidRequest(f"{name} has {len(data)} bytes; the limit is {most.value} {most.unit} ({most.name})")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
    most.check(len(text), name)
    return text


def read_question(data: bytes) -> Conversation:
    """One user message. Raises: InvalidRequest."""
    return as_conversation(read_text(data, "question", QUESTION_CHARACTERS))


def read_messages(data: bytes) -> Conversation:
    """JSON list of {role, content}. Raises: InvalidRequest."""
    MESSAGES_BYTES.check(len(data), "messages")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"messages is not UTF-8: {error.reason} at byte {error.start}") from None
    messages: list[dict[str, str]] = []
    mark, place = _mark(text, 0, "[")
    while mark != "]":
        MESSAGES.check(len(messages) + 1, "the conversation")
        message, place = _message(text, place)
        messages.append(message)
        mark, place = _mark(text, place, ",]")
    if text[place:].strip(_SPACE):
        raise _not_messages(text, place, "the end")
    return as_conversation(messages)


def _message(text: str, place: int) -> tuple[dict[str, str], int]:
    """An object of two strings, and the position after it. Anything else is rejected where it begins: a general parser
    would build a million lists first."""
    message: dict[str, str] = {}
    for before in "{,":
        _, place = _mark(text, place, before)
        key, place = _string(text, place)
        _, place = _mark(text, place, ":")
        message[key], place = _string(text, place)
    _, place = _mark(text, place, "}")
    return message, place


def _string(text: str, place: int) -> tuple[str, int]:
    _, place = _mark(text, place, '"')
    try:
        string, place = _JSON.raw_decode(text, place - 1)  # one value; its first character makes it a string
    except JSONDecodeError as error:
        raise InvalidRequest(f"messages is not JSON: {error}") from None
    return string, place


def _mark(text: str, place: int, expected: str) -> tuple[str, int]:
    """The next character that is not whitespace, which must be one of `expected`, and the position after it."""
    while place < len(text) and text[place] in _SPACE:
        place += 1
    if place == len(text) or text[place] not in expected:
        raise _not_messages(text, place, " or ".join(expected))
    return text[place], place + 1


def _not_messages(text: str, place: int, expected: str) -> InvalidRequest:
    found = repr(text[place : place + 20]) if place < len(text) else "its end"
    return InvalidRequest(
        "messages must be a JSON list of objects of two strings, role and content; "
        f"found {found} at character {place}, expected {expected}"
    )


def read_stop(words: Sequence[bytes]) -> tuple[str, ...]:
    """Strings that end an answer. Raises: InvalidRequest."""
    STOP_STRINGS.check(len(words), "stop", BadSampling)
    return tuple(read_text(word, "a string of stop", STOP_CHARACTERS) for word in words)


def check_request_id(request_id: str) -> None:
    """Raises: InvalidRequest for an id that is too long, or not printable: it could forge log lines."""
    REQUEST_ID_CHARACTERS.check(len(request_id), "the request id")
    if not request_id.isprintable():
        raise InvalidRequest("the request id contains unprintable characters; it must be one line of printable text")
