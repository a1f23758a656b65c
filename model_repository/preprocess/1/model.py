"""Media and options -> frames and filterbanks."""

from videollama_server.stages import load_stage

TritonPythonModel = load_stage("preprocess")
