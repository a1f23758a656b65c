"""Tokenizes samples in the reference's two pretraining formats and its tuning format, and marks the predicted tokens."""

from dataclasses import dataclass

from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.data.samples import Sample

MEDIA = -1  # an id that marks the place of the media's tokens
# chat: the whole conversation in the checkpoint's chat template; the answers are predicted.
# plain: pretraining of the connector; question and answer without a template, all predicted (the reference's main branch).
# placeholder: pretraining of the audio projector; the template around placeholder and answer (its audio-visual branch).
FORMATS = ("chat", "plain", "placeholder")


@dataclass(frozen=True)
class Tokens:
    """A conversation as ids."""

    ids: list[int]  # with MEDIA at most once
    is_target: list[bool]  # whether each id is predicted

    @property
    def media_at(self) -> int | None:
        """Index of MEDIA; None for text."""
        return self.ids.index(MEDIA) if MEDIA in self.ids else None


def tokenize(sample: Sample, tokenizer: Tokenizer, form: str = "chat", max_tokens: int = 2048) -> Tokens:
    """Ids of a conversation, truncated to `max_tokens`; media count as one token, as in the reference.

    Args:
        form: one of FORMATS.
    Raises: BadSample if the format or the chat template refuses the conversation, or no target is left.
    """
    if form != "chat" and (sample.media is None or len(sample.turns) > 1):
        raise BadSample(
            f"sample {sample.name}: it has {len(sample.turns)} questions about {sample.kind}; pretraining needs exactly one "
            "question and answer about media"
        )
    if form == "plain":
        ids = _encode(" ".join(sample.turns[0]), sample.placeholder, tokenizer)
        is_target = [token != MEDIA for token in ids]
    else:
        turns = sample.turns if form == "chat" else ((sample.placeholder, sample.turns[0][1]),)
        try:
            ids, is_target = _from_template(turns, sample.placeholder, tokenizer)
        except InvalidRequest as error:
            raise BadSample(f"sample {sample.name}: {error}") from error
    tokens = Tokens(ids[:max_tokens], is_target[:max_tokens])
    if sample.media is not None and tokens.media_at is None:
        raise BadSample(f"sample {sample.name}: {sample.placeholder} is beyond the limit of {max_tokens} text tokens")
    if not any(tokens.is_target):
        raise BadSample(f"sample {sample.name}: its first {max_tokens} text tokens have no answer to learn")
    return tokens


def _from_template(
    turns: tuple[tuple[str, str], ...], placeholder: str, tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """Ids of the rendered conversation. Targets are found by length: those after each prompt up to its answer's end."""
    messages: list[dict[str, str]] = []
    ids: list[int] = []
    is_target: list[bool] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        prompt = _encode(tokenizer.render(messages), placeholder, tokenizer)
        messages.append({"role": "assistant", "content": answer})
        ids = _encode(tokenizer.render(messages, add_generation_prompt=False), placeholder, tokenizer)
        is_target += [False] * (len(prompt) - len(is_target))
        is_target += [True] * (len(ids) - len(is_target))
    return ids, [target and token != MEDIA for token, target in zip(ids, is_target, strict=True)]


def _encode(text: str, placeholder: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of the pieces around the placeholder, tokenized separately, with MEDIA between them."""
    pieces = [tokenizer.encode(piece) for piece in (text.split(placeholder) if placeholder else [text])]
    return pieces[0] + [token for piece in pieces[1:] for token in (MEDIA, *piece)]
