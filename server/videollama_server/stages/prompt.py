"""Question or messages to input ids and sampling tensors of the language model, for the static ensemble."""

from typing import Any

from videollama_core.protocol.contract import PROMPT
from videollama_server.stages.calls import language_model_inputs
from videollama_server.stages.entry import build_prompt
from videollama_server.stages.entry_stage import read_conversation, read_options
from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar


class PromptStage(PythonStage):
    """The stage `prompt`: a question and the number of media tokens to the language model's tensors."""

    contract = PROMPT

    def load(self, args: dict[str, str]) -> None:
        self.bundle = bundle_of(args)
        self.tokenizer = self.bundle.tokenizer()
        self.defaults = self.bundle.generation_defaults(self.tokenizer)

    def run(
        self,
        question: Any,
        messages: Any,
        media_kind: Any,
        prompt_vocab_size: Any,
        media_hash: Any,
        **options: Any,
    ) -> dict[str, Any]:
        kind, rows = scalar(media_kind, "media_kind"), scalar(prompt_vocab_size, "prompt_vocab_size")
        prompt = build_prompt(self.bundle, self.tokenizer, read_conversation(question, messages), kind, rows or 0)
        sampling = self.defaults.resolve(read_options(options))
        end_ids, pad_id = self.defaults.end_ids, self.tokenizer.pad_id
        return language_model_inputs(prompt, sampling, end_ids, pad_id, scalar(media_hash, "media_hash"))
