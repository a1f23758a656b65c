"""The public entry: a question about media in, pieces of the answer out."""

from videollama_server.stages.entry_stage import EntryStage


class TritonPythonModel(EntryStage):
    pass
