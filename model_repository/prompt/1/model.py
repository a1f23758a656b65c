"""Question or messages -> input ids and sampling tensors, for the static ensemble."""

from videollama_server.stages import load_stage

TritonPythonModel = load_stage("prompt")
