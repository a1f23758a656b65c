"""Output ids -> text, for the static ensemble."""

from typing import Any

from videollama_core.protocol.contract import DETOKENIZE
from videollama_core.text import AnswerText
from videollama_server.stages.python_backend import PythonStage, bundle_of


class DetokenizeStage(PythonStage):
    contract = DETOKENIZE

    def load(self, args: dict[str, str]) -> None:
        self.tokenizer = bundle_of(args).tokenizer()

    def run(self, output_ids: Any, sequence_length: Any) -> dict[str, Any]:
        answer = AnswerText(self.tokenizer)
        ids = output_ids.reshape(-1)[: int(sequence_length.reshape(-1)[0])].tolist()
        text = answer.push(ids) + answer.finish()
        return {"text": [text.encode()], "output_ids": output_ids, "sequence_length": sequence_length}
