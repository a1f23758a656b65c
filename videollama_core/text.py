"""Text <-> token ids, and the checkpoint's chat template.

Decoding works on bytes: each id stands for some bytes, and text is the UTF-8 reading of their concatenation. An
incremental UTF-8 decoder therefore gives the same text piece by piece as all at once, whatever character is split over
tokens. It reproduces the slow (pure-python) tokenizers of the reference, byte errors included.
"""

import codecs
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as RustTokenizer

from videollama_core.checkpoint.read_config import read_json
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest
from videollama_core.protocol.messages import GenerationDefaults


def _one_mark_per_byte(error: UnicodeError) -> tuple[str, int]:
    """SentencePiece puts one U+FFFD for each byte that is not UTF-8."""
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

    Raises: ArtifactMismatch if a file is missing or the vocabulary is of an unknown kind.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ArtifactMismatch(f"{path} is missing; convert the checkpoint again")
        self._rust = RustTokenizer.from_file(str(path))
        self.config = read_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        stored = template.read_text("utf-8") if template.is_file() else _one_template(self.config.get("chat_template"))
        if not stored:
            raise ArtifactMismatch(f"{folder} has no chat template; the checkpoint's tokenizer must bring one")
        self._template_text: str = stored
        decoder = read_json(path).get("decoder") or {}
        kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and "ByteFallback" not in kinds:
            raise ArtifactMismatch(f"{path} decodes with {sorted(map(str, kinds))}; wanted ByteLevel or ByteFallback")
        self._special = {index for index, token in self._rust.get_added_tokens_decoder().items() if token.special}
        self._added = {index: token.content for index, token in self._rust.get_added_tokens_decoder().items()}

    def token(self, name: str) -> str | None:
        """Text of a named token such as "eos_token"; None if the tokenizer has none."""
        value = self.config.get(name)
        return value["content"] if isinstance(value, dict) else value

    def token_id(self, name: str) -> int | None:
        text = self.token(name)
        return None if text is None else self._rust.token_to_id(text)

    @property
    def pad_id(self) -> int | None:
        """The pad token's id; the unknown token's where there is no pad token, as in the reference."""
        pad = self.token_id("pad_token")
        return self.token_id("unk_token") if pad is None else pad

    def encode(self, text: str) -> list[int]:
        """Ids without added special tokens; special strings in the text become special tokens."""
        return self._rust.encode(text, add_special_tokens=False).ids

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return _byte_level_alphabet()

    def token_bytes(self, index: int) -> bytes:
        """Bytes that an id adds to the text; none for special tokens and ids beyond the vocabulary."""
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

    def decoder(self) -> "TextDecoder":
        return TextDecoder(self)

    def decode(self, ids: list[int]) -> str:
        """Text of all ids, special tokens skipped, whitespace kept."""
        decoder = self.decoder()
        return "".join(decoder.push(index) for index in ids) + decoder.finish()

    def new_utf8_decoder(self) -> codecs.IncrementalDecoder:
        return codecs.getincrementaldecoder("utf-8")("replace" if self._byte_level else "videollama_byte_marks")

    @property
    def drops_first_space(self) -> bool:
        """SentencePiece vocabularies put a space before the first word that the text does not have."""
        return not self._byte_level

    @cached_property
    def _template(self) -> jinja2.Template:
        def raise_exception(message: str) -> None:
            raise InvalidRequest(f"the checkpoint's chat template refuses the conversation: {message}")

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        return environment.from_string(self._template_text)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt string of a conversation, up to where the answer begins (or ended, without generation prompt)."""
        tokens = {name: self.token(name) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **tokens)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the checkpoint's chat template refuses the conversation: {error}") from error


def _one_template(value: Any) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    template: str | None = value
    return template


class TextDecoder:
    """Ids in, text out as soon as it is certain."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = tokenizer.new_utf8_decoder()
        self._at_start = tokenizer.drops_first_space

    def push(self, index: int) -> str:
        data = self._tokenizer.token_bytes(index)
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What the bytes still held back read as, now that nothing follows."""
        return self._utf8.decode(b"", final=True)


class AnswerText:
    """The answer's text in pieces: stripped on both ends, and cut before the first stop string.

    Text that might still be cut (trailing whitespace, the beginning of a stop string) is held back, so that the joined
    pieces equal the whole text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._decoder = tokenizer.decoder()
        self._stop = stop
        self._held = ""
        self._started = False
        self.stopped = False  # a stop string was found

    def push(self, ids: list[int]) -> str:
        """Text that is now certain."""
        if self.stopped:
            return ""
        self._held += "".join(self._decoder.push(index) for index in ids)
        return self._release(final=False)

    def finish(self) -> str:
        if self.stopped:
            return ""
        self._held += self._decoder.finish()
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        found = [place for place in (self._held.find(word) for word in self._stop) if place >= 0]
        if found:
            self.stopped = final = True
            self._held = self._held[: min(found)]
        if not self._started:
            self._held = self._held.lstrip()
        keep = 0 if final else self._beginning_of_stop()
        certain = self._held[: len(self._held) - keep].rstrip()
        self._held = "" if final else self._held[len(certain) :]
        self._started = self._started or bool(certain)
        return certain

    def _beginning_of_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
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
    """End ids, top-k and repetition penalty from generation_config.json; the tokenizer's end token counts too."""
    path = folder / "generation_config.json"
    content = read_json(path) if path.is_file() else {}
    ids = content.get("eos_token_id", [])
    ends = [*(ids if isinstance(ids, list) else [ids]), tokenizer.token_id("eos_token")]
    return GenerationDefaults(
        end_ids=tuple(dict.fromkeys(index for index in ends if index is not None)),
        top_k=content.get("top_k", 50),
        repetition_penalty=content.get("repetition_penalty", 1.0),
    )
