"""Text <-> token ids, and the checkpoint's chat template.

Decoding works on bytes: each id maps to bytes, and the text is their concatenation decoded as UTF-8. An incremental
UTF-8 decoder therefore gives the same text piece by piece as all at once, even for characters that span tokens. It
reproduces the slow (pure Python) tokenizers of the reference, invalid bytes included.
"""

import codecs
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from videollama_core.checkpoint.files import in_words, read_json, shown
from videollama_core.protocol.errors import ArtifactMismatch
from videollama_core.protocol.messages import GenerationDefaults
from videollama_core.template import ChatTemplate

_KEPT_TOKENS = 2**17


def _one_mark_per_byte(error: UnicodeError) -> tuple[str, int]:
    """SentencePiece emits one U+FFFD for each invalid byte."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("videollama_byte_marks", _one_mark_per_byte)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Qwen2's vocabulary): character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Tokenizer:
    """The tokenizer of a `llm/` folder: tokenizer.json, tokenizer_config.json and the chat template.

    Raises: ArtifactMismatch if a file is missing or invalid, or the vocabulary is of an unknown kind.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ArtifactMismatch(f"{path} is missing; convert the checkpoint again")
        try:
            self._rust = RustTokenizer.from_file(str(path))
        except Exception as error:  # the library has no error of its own
            raise ArtifactMismatch(f"{path} is not a tokenizer: {in_words(error)}") from error
        self.config = read_json(folder / "tokenizer_config.json")
        stored = _read_template(folder, self.config)
        if not stored:
            raise ArtifactMismatch(f"{folder} has no chat template; the checkpoint's tokenizer must include one")
        self._template_text: str = stored
        decoder = read_json(path).get("decoder") or {}
        kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and "ByteFallback" not in kinds:
            raise ArtifactMismatch(f"{path} decodes with {sorted(map(str, kinds))}; expected ByteLevel or ByteFallback")
        self._bytes: dict[int, bytes] = {}  # a cache of at most _KEPT_TOKENS ids
        self._special = {index for index, token in self._rust.get_added_tokens_decoder().items() if token.special}
        self._added = {index: token.content for index, token in self._rust.get_added_tokens_decoder().items()}

    def token(self, name: str) -> str | None:
        """Text of a named token such as "eos_token"; None if the tokenizer has none. Raises: ArtifactMismatch."""
        value = self.config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str | None):
            raise ArtifactMismatch(f"{name} of tokenizer_config.json is {shown(text)}; expected a string")
        return text

    def token_id(self, name: str) -> int | None:
        """Id of a named token; None if the tokenizer has none."""
        text = self.token(name)
        return None if text is None else self._rust.token_to_id(text)

    @property
    def pad_id(self) -> int | None:
        """The pad token's id; without a pad token, the unknown token's, as in the reference."""
        pad = self.token_id("pad_token")
        return self.token_id("unk_token") if pad is None else pad

    def encode(self, text: str) -> list[int]:
        """Ids without added special tokens; special strings in the text become special tokens."""
        return self._rust.encode(text, add_special_tokens=False).ids

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return _byte_level_alphabet()

    def token_bytes(self, index: int) -> bytes:
        """The bytes that an id adds to the text; empty for special tokens and ids beyond the vocabulary."""
        data = self._bytes.get(index)
        if data is None:
            data = self._bytes_of(index)
            if len(self._bytes) < _KEPT_TOKENS:
                self._bytes[index] = data
        return data

    def _bytes_of(self, index: int) -> bytes:
        if index in self._special:
            return b""
        if index in self._added:
            return self._added[index].encode()
        piece = self._rust.id_to_token(index)
        if piece is None:
            return b""
        if self._byte_level:
            return bytes(self._alphabet[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def check(self, vocab_size: int) -> None:
        """Raises: ArtifactMismatch unless every id is below `vocab_size`, the rows of the embedding, and maps to bytes.

        Ids from `vocab_size` on mark media positions: a tokenizer with such ids could inject media into a question.
        """
        largest = max(self._rust.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab_size:
            raise ArtifactMismatch(f"the tokenizer has the id {largest}, but the model's vocabulary has {vocab_size}")
        try:
            for index in range(largest + 1):
                self.token_bytes(index)
        except (KeyError, ValueError) as error:
            piece = shown(self._rust.id_to_token(index))
            raise ArtifactMismatch(f"the tokenizer's piece {index}, {piece}, maps to no bytes") from error

    def decoder(self) -> "TextDecoder":
        """A new incremental decoder, for one sequence of ids."""
        return TextDecoder(self)

    def decode(self, ids: list[int]) -> str:
        """Text of all ids, special tokens skipped, whitespace kept."""
        decoder = self.decoder()
        return "".join(decoder.push(index) for index in ids) + decoder.finish()

    def new_utf8_decoder(self) -> codecs.IncrementalDecoder:
        return codecs.getincrementaldecoder("utf-8")("replace" if self._byte_level else "videollama_byte_marks")

    @property
    def drops_first_space(self) -> bool:
        """Whether decoding drops the space that SentencePiece vocabularies put before the first word."""
        return not self._byte_level

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._template_text)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt string of a conversation, up to where the answer begins (or ended, without generation prompt).

        Raises: InvalidRequest if the template rejects the conversation or exceeds its budget.
        """
        tokens = {name: self.token(name) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokens)


def _read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, or that of tokenizer_config.json, which holds one template or a list of named ones."""
    path = folder / "chat_template.jinja"
    value = config.get("chat_template")
    try:
        if path.is_file():
            return path.read_text("utf-8")
    except ValueError as error:
        raise ArtifactMismatch(f"{path} is not UTF-8 text") from error
    if isinstance(value, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in value
            if isinstance(entry, dict) and entry.get("name") == "default"
        }
        value = named.get("default")
    if not isinstance(value, str | None):
        raise ArtifactMismatch(f"chat_template of {folder} is {shown(value)}; expected a string")
    return value


class TextDecoder:
    """Incremental detokenizer: emits text as soon as its characters are complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = tokenizer.new_utf8_decoder()
        self._at_start = tokenizer.drops_first_space

    def push(self, index: int) -> str:
        """Append one id; return the text that its bytes complete."""
        data = self._tokenizer.token_bytes(index)
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Text of the bytes still held back, now that no more will come."""
        return self._utf8.decode(b"", final=True)


class AnswerText:
    """The answer's text in pieces: stripped at both ends, and cut before the first stop string.

    Text that may still be cut (trailing whitespace, the beginning of a stop string) is held back, so that the joined
    pieces equal the whole text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._decoder = tokenizer.decoder()
        self._stop = stop
        self._held = ""
        self._started = False
        self.stopped = False  # a stop string was found

    def push(self, ids: list[int]) -> str:
        """Append ids; return the text that can no longer be cut."""
        if self.stopped:
            return ""
        self._held += "".join(self._decoder.push(index) for index in ids)
        return self._release(final=False)

    def finish(self) -> str:
        """The rest of the text, once there are no more ids."""
        if self.stopped:
            return ""
        self._held += self._decoder.finish()
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        matches = [place for place in (self._held.find(word) for word in self._stop) if place >= 0]
        if matches:
            self.stopped = final = True
            self._held = self._held[: min(matches)]
        if not self._started:
            self._held = self._held.lstrip()
        keep = 0 if final else self._beginning_of_stop()
        certain = self._held[: len(self._held) - keep].rstrip()
        self._held = "" if final else self._held[len(certain) :]
        self._started = self._started or bool(certain)
        return certain

    def _beginning_of_stop(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        return max(
            (
                size
                for word in self._stop
                for size in range(1, min(len(word) - 1, len(self._held)) + 1)
                if self._held.endswith(word[:size])
            ),
            default=0,
        )


def read_generation_defaults(folder: Path, tokenizer: Tokenizer) -> GenerationDefaults:
    """End ids, top-k and repetition penalty from generation_config.json; the tokenizer's end token counts too.

    Raises: ArtifactMismatch for values of another type or out of range.
    """
    path = folder / "generation_config.json"
    content = read_json(path) if path.is_file() else {}
    ids, top_k, penalty = content.get("eos_token_id"), content.get("top_k"), content.get("repetition_penalty")
    top_k, penalty = 50 if top_k is None else top_k, 1.0 if penalty is None else penalty
    ends = [*(ids if isinstance(ids, list) else [ids]), tokenizer.token_id("eos_token")]
    ends = [index for index in ends if index is not None]
    if not all(type(value) is int and 0 <= value < 2**31 for value in (*ends, top_k)):
        raise ArtifactMismatch(f"{path}: eos_token_id {shown(ids)} and top_k {shown(top_k)}; expected integers from 0")
    if type(penalty) not in (int, float) or not 0 < penalty <= 100:
        raise ArtifactMismatch(
            f"{path}: repetition_penalty is {shown(penalty)}; expected a number above 0, at most 100"
        )
    return GenerationDefaults(tuple(dict.fromkeys(ends)), top_k, penalty)
