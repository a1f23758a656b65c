"""The public entry: a question about media in, pieces of the answer out."""

from videollama_server.stages import load_stage

TritonPythonModel = load_stage("videollama2")
