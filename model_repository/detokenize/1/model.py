"""Output ids -> text, for the static ensemble."""

from videollama_server.stages.python_backend import PythonStage, bundle_of

from videollama_core.protocol.contract import DETOKENIZE
from videollama_core.text import AnswerText


class TritonPythonModel(PythonStage):
    contract = DETOKENIZE

    def load(self, args):
        self.tokenizer = bundle_of(args).tokenizer()

    def run(self, output_ids, sequence_length):
        answer = AnswerText(self.tokenizer)
        ids = output_ids.reshape(-1)[: int(sequence_length.reshape(-1)[0])].tolist()
        text = answer.push(ids) + answer.finish()
        return {"text": [text.encode()], "output_ids": output_ids, "sequence_length": sequence_length}
