"""Frames and filterbanks -> media tokens."""

from videollama_server.stages import load_stage

TritonPythonModel = load_stage("encoder")
