"""The language model's stage: TensorRT-LLM's tensors around the scheduler."""

import os
import uuid
from typing import Any

import numpy as np

from videollama_core.engines.bundle import Bundle
from videollama_core.generation.onnx_runner import load_runner
from videollama_core.generation.request import GenerationRequest, Step
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.protocol import contract
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError
from videollama_core.protocol.messages import VCD_BETA, ResolvedSampling, SamplingOptions
from videollama_server.installation import LANGUAGE_MODEL_VARIABLE
from videollama_server.stages.metrics import Metric, MetricsPublisher
from videollama_server.stages.python_backend import DecoupledStage, Reply, bundle_of, parameter, scalar


def _metrics(scheduler: Scheduler) -> tuple[Metric, ...]:
    counters = scheduler.counters
    return (
        Metric("vl2_llm_iterations_total", "Iterations of the scheduler", lambda: counters.iterations),
        Metric(
            "vl2_llm_decode_steps_total", "Decoding steps, one for all running requests", lambda: counters.decode_steps
        ),
        Metric("vl2_llm_generated_tokens_total", "Tokens generated", lambda: counters.generated_tokens),
        Metric("vl2_llm_cancelled_total", "Requests stopped, or left by their caller", lambda: counters.cancelled),
        Metric("vl2_llm_running", "Requests that hold a slot", lambda: scheduler.num_running),
        Metric("vl2_llm_waiting", "Requests that wait for a slot", lambda: scheduler.num_waiting),
    )


def load_scheduler(bundle: Bundle, num_slots: int, max_waiting: int, prefill_chunk: int) -> Scheduler:
    """The scheduler on the bundle's own engine, or on vLLM where it or `vl2 serve --llm vllm` says so."""
    if "vllm" in (os.environ.get(LANGUAGE_MODEL_VARIABLE), bundle.llm_engine):
        from videollama_core.generation.vllm_scheduler import VllmRunner, VllmSteps

        return Scheduler(VllmSteps(VllmRunner(bundle, num_slots)), max_waiting)
    return Scheduler(SlotSteps(load_runner(bundle, num_slots), prefill_chunk), max_waiting)


class LanguageModelStage(DecoupledStage):
    contract = contract.LANGUAGE_MODEL

    def load(self, args: dict[str, str]) -> None:
        bundle = bundle_of(args)
        self._width = bundle.config.language.width
        self._scheduler = load_scheduler(
            bundle,
            num_slots=int(parameter(args, "max_num_sequences")),
            max_waiting=int(parameter(args, "max_queue_size")),
            prefill_chunk=int(parameter(args, "prefill_chunk_len")),
        )
        self._scheduler.start()
        self._publisher = MetricsPublisher(self.contract.name, _metrics(self._scheduler))

    def handle_at_once(self, inputs: dict[str, Any], request_id: str, reply: Reply) -> bool:
        """Requests only wait in the scheduler's queue, so none needs a thread."""
        if scalar(inputs["stop"], "stop"):
            self._scheduler.stop(request_id)
            reply.end()
        else:
            self._scheduler.submit(self._generation(request_id, inputs, reply))
        return True

    def _generation(self, request_id: str, inputs: dict[str, Any], reply: Reply) -> GenerationRequest:
        def one(name: str, default: Any = None) -> Any:
            value = scalar(inputs[name], name)
            return default if value is None else value

        input_ids = inputs["input_ids"].reshape(-1).astype(np.int64)
        length = one("input_lengths")
        if not 0 < length <= len(input_ids):
            raise InvalidRequest(f"input_lengths is {length}; input_ids has {len(input_ids)} ids")
        answer = _Response(
            reply, one("streaming", False), () if one("exclude_input_in_output", True) else input_ids[:length]
        )
        return GenerationRequest(
            request_id=request_id or uuid.uuid4().hex,
            input_ids=input_ids[:length],
            sampling=_sampling(one),
            end_words=_end_words(one("end_id", -1), inputs["stop_words_list"]),
            on_step=answer.add,
            on_error=answer.fail,
            media=self._media(inputs["prompt_embedding_table"], one("prompt_vocab_size")),
            pad_id=one("pad_id"),
            return_logits=one("return_generation_logits", False),
            is_cancelled=reply.is_cancelled,
        )

    def _media(self, table: np.ndarray | None, rows: int | None) -> np.ndarray | None:
        if table is None:
            return None
        media = table.reshape(-1, table.shape[-1])
        if media.shape[1] != self._width or (rows is not None and rows != len(media)):
            raise InvalidRequest(
                f"prompt_embedding_table is {list(media.shape)} and prompt_vocab_size {rows}; wanted rows of width {self._width}"
            )
        return media

    def finalize(self) -> None:
        self._publisher.close()
        self._scheduler.close()
        super().finalize()


class _Response:
    """Steps of the scheduler -> responses of the contract."""

    def __init__(self, reply: Reply, streaming: bool, prompt: Any) -> None:
        self._reply, self._streaming = reply, streaming
        self._ids: list[int] = list(prompt)
        self._logits: list[np.ndarray] = []

    def add(self, step: Step) -> None:
        self._ids.append(step.token)
        if step.logits is not None:
            self._logits.append(step.logits)
        if not self._streaming and not step.last:
            return
        values: dict[str, Any] = {"output_ids": [[self._ids]], "sequence_length": [[len(self._ids)]]}
        if self._logits:
            values["generation_logits"] = [[self._logits]]
        self._reply.send(values, last=step.last)
        if self._streaming:
            self._ids, self._logits = [], []

    def fail(self, error: VideoLlamaError) -> None:
        self._reply.fail(error)


def _sampling(one: Any) -> ResolvedSampling:
    top_k = one("runtime_top_k", 0)
    options = SamplingOptions(  # checks the ranges
        max_new_tokens=one("request_output_len"),
        temperature=one("temperature", 1.0),
        top_k=top_k,
        top_p=one("runtime_top_p", 1.0),
        repetition_penalty=one("repetition_penalty", 1.0),
        seed=one("seed", 0),
        vcd_alpha=one("vcd_alpha", 0.0),
        vcd_beta=one("vcd_beta", VCD_BETA),
    )
    return ResolvedSampling(
        max_new_tokens=options.max_new_tokens or 1,
        greedy=top_k == 1 or options.temperature == 0,
        temperature=options.temperature or 1.0,
        top_k=top_k,
        top_p=options.top_p or 1.0,
        repetition_penalty=options.repetition_penalty or 1.0,
        seed=options.seed or 0,
        vcd_alpha=options.vcd_alpha or 0.0,
        vcd_beta=VCD_BETA if options.vcd_beta is None else options.vcd_beta,
    )


def _end_words(end_id: int, stop_words: np.ndarray | None) -> tuple[tuple[int, ...], ...]:
    """The end id, and each word of [1, 2, L]: ids in row 0, running end offsets padded with -1 in row 1."""
    words: list[tuple[int, ...]] = [(end_id,)] if end_id >= 0 else []
    if stop_words is not None and stop_words.size:
        ids, ends = stop_words.reshape(2, -1).tolist()
        begin = 0
        for end in ends:
            if end < 0:
                break
            if not begin < end <= len(ids):
                raise InvalidRequest(f"stop_words_list has the offsets {ends}; they must rise within {len(ids)} ids")
            words.append(tuple(ids[begin:end]))
            begin = end
    return tuple(dict.fromkeys(words))
