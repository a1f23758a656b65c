"""Output ids -> text, for the static ensemble."""

from videollama_server.stages import load_stage

TritonPythonModel = load_stage("detokenize")
