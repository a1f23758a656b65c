"""The language model on one of the engines that run in a stage of ours. torch and vllm are imported on demand."""

from collections.abc import Callable

from videollama_core.engines.bundle import Bundle
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.generation.runner import Runner
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.protocol.errors import ArtifactMismatch


def _onnx(bundle: Bundle, num_slots: int) -> Runner:
    return OnnxRunner(bundle, num_slots, bundle.max_seq_len)


def _torch(bundle: Bundle, num_slots: int) -> Runner:
    from videollama_core.generation.torch_runner import TorchRunner, load_decoder

    return TorchRunner(load_decoder(bundle), num_slots, bundle.max_seq_len)


# Name in LANGUAGE_ENGINES (engines/table.py) -> its runner, for our scheduler.
RUNNERS: dict[str, Callable[[Bundle, int], Runner]] = {"onnx": _onnx, "torch": _torch}


def load_runner(bundle: Bundle, num_slots: int) -> Runner:
    """The language model on the engine that the bundle was converted for. Raises: ArtifactMismatch."""
    engine = bundle.language_engine.name
    if engine not in RUNNERS:
        raise ArtifactMismatch(f"{bundle.root}: there is no runner for {engine}; expected one of {', '.join(RUNNERS)}")
    return RUNNERS[engine](bundle, num_slots)


def _vllm(bundle: Bundle, num_slots: int, max_waiting: int) -> Scheduler:
    from videollama_core.generation.vllm_runner import VllmRunner, VllmSteps

    return Scheduler(VllmSteps(VllmRunner(bundle, num_slots)), max_waiting)


# The same for engines with a scheduler of their own.
SCHEDULERS: dict[str, Callable[[Bundle, int, int], Scheduler]] = {"vllm": _vllm}


def load_scheduler(
    bundle: Bundle, override: str | None, num_slots: int, max_waiting: int, prefill_chunk: int
) -> Scheduler:
    """The scheduler of a bundle's language model.

    Args:
        override: an engine that `vl2 serve` uses instead of the bundle's own; None for the bundle's.
        max_waiting: requests in the queue.
        prefill_chunk: positions, while no request decodes.
    Raises: ArtifactMismatch.
    """
    engine = override if override in SCHEDULERS else bundle.llm_engine
    if engine in SCHEDULERS:
        return SCHEDULERS[engine](bundle, num_slots, max_waiting)
    return Scheduler(SlotSteps(load_runner(bundle, num_slots), prefill_chunk), max_waiting)
