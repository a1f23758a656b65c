"""Samples -> token ids, and which of them are predicted: the reference's two formats of pretraining and that of tuning."""

from dataclasses import dataclass

from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.data.samples import Sample

MEDIA = -1  # among ids: where the media's tokens go
# chat: the whole conversation in the checkpoint's chat template, of which the answers are predicted.
# plain: pretraining of the connector, question and answer without template, all predicted (the reference's main branch).
# placeholder: pretraining of the audio projector, the template around placeholder and answer (its audio-visual branch).
FORMATS = ("chat", "plain", "placeholder")


@dataclass(frozen=True)
class Tokens:
    """A conversation as ids."""

    ids: list[int]  # MEDIA stands for the media, at most once
    is_target: list[bool]  # for each id: whether it is predicted

    @property
    def media_at(self) -> int | None:
        return self.ids.index(MEDIA) if MEDIA in self.ids else None


def tokenize(sample: Sample, tokenizer: Tokenizer, form: str = "chat", max_tokens: int = 2048) -> Tokens:
    """Ids of a conversation, cut after `max_tokens` of them; media count as one there, as in the reference.

    Args:
        form: of FORMATS.
    Raises: BadSample if the form or the chat template refuses the conversation, or nothing is left to learn.
    """
    if form != "chat" and (sample.media is None or len(sample.turns) > 1):
        raise BadSample(
            f"sample {sample.name}: found {len(sample.turns)} questions about {sample.kind}; pretraining takes one "
            "question and its answer about media"
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
        raise BadSample(f"sample {sample.name}: {sample.placeholder} lies beyond the limit of {max_tokens} text tokens")
    if not any(tokens.is_target):
        raise BadSample(f"sample {sample.name}: there is nothing to learn in its first {max_tokens} text tokens")
    return tokens


def _from_template(
    turns: tuple[tuple[str, str], ...], placeholder: str, tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """Ids of the rendered conversation; predicted are, by length alone, those after each prompt until its answer's end."""
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
    return ids, [wanted and token != MEDIA for token, wanted in zip(ids, is_target, strict=True)]


def _encode(text: str, placeholder: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of the pieces around the placeholder, tokenised one by one, with MEDIA between them."""
    pieces = [tokenizer.encode(piece) for piece in (text.split(placeholder) if placeholder else [text])]
    return pieces[0] + [token for piece in pieces[1:] for token in (MEDIA, *piece)]
