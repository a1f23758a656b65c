"""Output ids to text, for the static ensemble."""

from typing import Any

from videollama_core.protocol.contract import DETOKENIZE
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.text import AnswerText
from videollama_server.stages.python_backend import PythonStage, bundle_of, scalar


class DetokenizeStage(PythonStage):
    """The stage `detokenize`: output_ids, int32 [1, n], to the text of the first `sequence_length` of them."""

    contract = DETOKENIZE

    def load(self, args: dict[str, str]) -> None:
        self.tokenizer = bundle_of(args).tokenizer()

    def run(self, output_ids: Any, sequence_length: Any) -> dict[str, Any]:
        answer = AnswerText(self.tokenizer)
        length, ids = scalar(sequence_length, "sequence_length"), output_ids.reshape(-1)
        if not 0 <= length <= len(ids):
            raise InvalidRequest(f"sequence_length is {length}; wanted 0 to {len(ids)}, the number of output_ids")
        if len(ids) and ids.min() < 0:
            raise InvalidRequest(f"output_ids holds {ids.min()}; ids must not be negative")
        text = answer.push(ids[:length].tolist()) + answer.finish()
        return {"text": [text.encode()], "output_ids": output_ids, "sequence_length": sequence_length}
