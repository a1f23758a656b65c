"""Question -> prompt ids with positions for the media tokens."""

from dataclasses import dataclass

import numpy as np

from videollama_core.protocol.errors import InvalidRequest, PromptTooLong
from videollama_core.protocol.messages import Conversation
from videollama_core.text import Tokenizer

PLACEHOLDERS = {"video": "<video>", "image": "<image>", "audio": "<audio>", "text": ""}
# media_kind on the wire -> modality of the prompt
MODALITIES = {
    "video": "video",
    "frames": "video",
    "folder": "video",
    "image": "image",
    "audio": "audio",
    "video_with_audio": "video",
}
# Mistral and Mixtral checkpoints use Llama 2's safety prompt; its tags are part of the message, as in the reference.
# The single newline between the paragraphs and the two spaces after "while being safe." are the reference's.
SYSTEM_FAMILIES = ("mistral", "mixtral")
SYSTEM_FORM = "<<SYS>>\n{}\n<</SYS>>"
SYSTEM_TEXT = SYSTEM_FORM.format(
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something not "
    "correct. If you don't know the answer to a question, please don't share false information."
)


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt of L text tokens and N media tokens."""

    input_ids: np.ndarray  # int32 [L + N]; media position k holds vocab_size + k
    text_tokens: int  # L
    media_tokens: int  # N
    media_start: int  # position of the first media token

    def extra_ids(self, media_hash: int | None) -> np.ndarray:
        """uint64 [L + N], one per id: the media's hash at each media position, 0 at text positions.

        Media positions of all videos hold the same ids; this hash alone tells TensorRT-LLM which KV cache blocks it may
        reuse. It silently ignores a list of any other length. Raises: InvalidRequest for media without a hash.
        """
        if self.media_tokens and not media_hash:
            raise InvalidRequest(
                "media_hash is missing: without it, media tokens could be taken for those of other media"
            )
        hashes = np.zeros(len(self.input_ids), np.uint64)
        hashes[self.media_start : self.media_start + self.media_tokens] = media_hash or 0
        return hashes


def render_prompt(tokenizer: Tokenizer, family: str, conversation: Conversation, modality: str) -> str:
    """The prompt string: placeholder and newline before the user's first message, the system text, the template.

    A system message in the conversation replaces the family's own text and keeps the family's form. In text mode the
    placeholder is empty but the newline stays, as in the reference.
    Raises: InvalidRequest if the template rejects the roles, or the text contains the placeholder of its own media.
    """
    placeholder = PLACEHOLDERS[modality]
    if placeholder and any(placeholder in message["content"] for message in conversation):
        raise InvalidRequest(
            f"the text contains {placeholder}, which marks the place of the media; write the word without the brackets"
        )
    in_form = family in SYSTEM_FAMILIES
    system = [{"role": "system", "content": SYSTEM_TEXT}] if in_form else []
    if conversation[0]["role"] == "system":
        text = conversation[0]["content"]
        system = [{"role": "system", "content": SYSTEM_FORM.format(text) if in_form else text}]
        conversation = conversation[1:]
    first = {**conversation[0], "content": f"{placeholder}\n{conversation[0]['content']}"}
    return tokenizer.render([*system, first, *conversation[1:]])


def tokenize_prompt(tokenizer: Tokenizer, prompt: str, modality: str, num_media_tokens: int, vocab_size: int) -> Prompt:
    """Tokenize the text before and after the placeholder separately and put the media positions in between.

    Args:
        num_media_tokens: N, rows of the prompt embedding table; 0 in text mode.
        vocab_size: rows of the embedding; media position k becomes vocab_size + k.
    Raises: InvalidRequest unless the prompt contains its placeholder exactly once.
    """
    placeholder = PLACEHOLDERS[modality]
    pieces = prompt.split(placeholder) if placeholder else [prompt]
    if len(pieces) != (2 if placeholder else 1):
        raise InvalidRequest(f"the prompt contains {placeholder} {len(pieces) - 1} times; expected exactly one")
    ids = [tokenizer.encode(piece) for piece in pieces]
    media = list(range(vocab_size, vocab_size + num_media_tokens)) if placeholder else []
    joined = ids[0] + media + (ids[1] if placeholder else [])
    return Prompt(np.array(joined, np.int32), len(joined) - len(media), len(media), len(ids[0]))


def check_length(prompt: Prompt, max_positions: int) -> None:
    """Raises: PromptTooLong unless the prompt leaves room for one new token."""
    length = len(prompt.input_ids)
    if length >= max_positions:
        raise PromptTooLong(
            f"the prompt has {prompt.text_tokens} text and {prompt.media_tokens} media tokens; the context holds "
            f"{max_positions}, at least 1 new one included: shorten the question by {length - max_positions + 1} tokens"
        )
