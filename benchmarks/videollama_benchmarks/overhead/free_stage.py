"""The language model stage with the usual scheduler on the free model; imported only by the stage's process."""

import os

from videollama_benchmarks.overhead.free_model import STEP_VARIABLE, FreeSteps
from videollama_core.engines.bundle import Bundle
from videollama_core.generation.scheduler import Scheduler
from videollama_server.stages.language_model import LanguageModelStage


class FreeLanguageModelStage(LanguageModelStage):
    """Used by the model.py that served.py writes."""

    def scheduler_of(self, bundle: Bundle, args: dict[str, str]) -> Scheduler:
        step = float(os.environ.get(STEP_VARIABLE, "0"))
        return Scheduler(FreeSteps(bundle.max_seq_len, bundle.config.language.vocab_size, step))
