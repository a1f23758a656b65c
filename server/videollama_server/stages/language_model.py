"""The language model's stage: the scheduler behind TensorRT-LLM's tensors."""

import os
import threading
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from videollama_core.engines.bundle import Bundle
from videollama_core.generation.language_models import load_scheduler
from videollama_core.generation.request import GenerationRequest, Step
from videollama_core.generation.scheduler import Scheduler
from videollama_core.protocol import contract
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError
from videollama_core.protocol.messages import ResolvedSampling, SamplingOptions
from videollama_core.telemetry import metric_definitions
from videollama_core.telemetry.traces import open_tracer
from videollama_server.answers.outbox import Outbox
from videollama_server.direct.listener import DirectListener, DirectReply
from videollama_server.direct.request import DirectRequest
from videollama_server.installation import LANGUAGE_MODEL_VARIABLE, SOCKET_VARIABLE
from videollama_server.stages.decoupled import DecoupledStage, Reply
from videollama_server.stages.metrics import MetricsPublisher, PolledMetric
from videollama_server.stages.python_backend import bundle_of, parameter, scalar
from videollama_server.stages.request_telemetry import GENERATION_METRICS, TRACED_SERVICE, GenerationTelemetry


def _metrics(scheduler: Scheduler) -> tuple[PolledMetric, ...]:
    counters = scheduler.counters
    return (
        PolledMetric(metric_definitions.ITERATIONS, lambda: counters.iterations),
        PolledMetric(metric_definitions.DECODE_STEPS, lambda: counters.decode_steps),
        PolledMetric(metric_definitions.GENERATED, lambda: counters.generated_tokens),
        PolledMetric(metric_definitions.PREFIX_QUERIES, lambda: counters.prompt_positions + counters.reused_positions),
        PolledMetric(metric_definitions.PREFIX_HITS, lambda: counters.reused_positions),
        PolledMetric(metric_definitions.PROMPTS_ALIKE, lambda: counters.prefix_hits),
        PolledMetric(metric_definitions.PREFIX_BYTES, lambda: counters.prefix_bytes),
        PolledMetric(metric_definitions.CANCELLED, lambda: counters.cancelled),
        PolledMetric(metric_definitions.RUNNING, lambda: scheduler.num_running),
        PolledMetric(metric_definitions.WAITING, lambda: scheduler.num_waiting),
    )


class LanguageModelStage(DecoupledStage):
    """The stage `tensorrt_llm`: prompt ids and media tokens to new token ids, from its tensors or from the entry's socket."""

    contract = contract.LANGUAGE_MODEL
    check_seconds = 0.2  # the entry sends `stop`; this covers direct clients, and an entry that dies

    def load(self, args: dict[str, str]) -> None:
        bundle = bundle_of(args)
        self._width = bundle.config.language.width
        self._scheduler = self.scheduler_of(bundle, args)
        self._outbox = Outbox(self.contract.name)
        self._publisher = MetricsPublisher(self.contract.name, _metrics(self._scheduler), GENERATION_METRICS)
        self._tracer = open_tracer(TRACED_SERVICE, resource={"vl2.stage": self.contract.name})
        path = os.environ.get(SOCKET_VARIABLE)
        self._listener = DirectListener(path, self._begin_direct, self._stop_direct) if path else None
        if self._listener is not None:
            self._scheduler.after_step = self._listener.flush
        self._scheduler.start()  # after everything that its steps report to: the entry may have asked already

    def scheduler_of(self, bundle: Bundle, args: dict[str, str]) -> Scheduler:
        return load_scheduler(
            bundle,
            os.environ.get(LANGUAGE_MODEL_VARIABLE),
            num_slots=int(parameter(args, "max_num_sequences")),
            max_waiting=int(parameter(args, "max_queue_size")),
            prefill_chunk=int(parameter(args, "prefill_chunk_len")),
        )

    def answer(self, inputs: dict[str, Any], reply: Reply) -> None:
        if scalar(inputs["stop"], "stop"):
            self._scheduler.stop(reply.request_id)
            reply.end()
        else:
            response = _Response(reply, self._outbox, self._telemetry(reply.traceparent), inputs)
            self._submit(reply.request_id or uuid.uuid4().hex, inputs, response)
            self.callers.add(reply)

    def _begin_direct(self, message: bytearray, reply: DirectReply) -> None:
        direct = DirectRequest.from_bytes(message)
        reply.request_id, prompt = direct.request_id, direct.prompt
        response = _DirectResponse(reply, self._telemetry(direct.traceparent))
        request = GenerationRequest(
            request_id=direct.request_id,
            input_ids=prompt.input_ids.astype(np.int64),
            sampling=direct.sampling,
            end_words=tuple((index,) for index in direct.end_ids),
            on_step=response.add,
            on_error=response.fail,
            media=self._media(direct.media, None),
            media_hashes=None if direct.media is None else prompt.extra_ids(direct.media_hash),
            pad_id=direct.pad_id,
            is_cancelled=response.is_cancelled,
            on_admitted=response.telemetry.admitted,
        )
        self._scheduler.submit(request)

    def _stop_direct(self, reply: DirectReply) -> None:
        self._scheduler.stop(reply.request_id)

    def _telemetry(self, traceparent: str | None) -> GenerationTelemetry:
        return GenerationTelemetry(self._publisher, self._tracer.under(traceparent))

    def _submit(self, request_id: str, inputs: dict[str, Any], response: "_Response") -> None:
        value = partial(_value, inputs)
        input_ids = inputs["input_ids"].reshape(-1).astype(np.int64)
        length = value("input_lengths")
        if not 0 < length <= len(input_ids):
            raise InvalidRequest(f"input_lengths is {length}; input_ids has {len(input_ids)} ids")
        request = GenerationRequest(
            request_id=request_id,
            input_ids=input_ids[:length],
            sampling=_sampling(value),
            end_words=_end_words(value("end_id", -1), inputs["stop_words_list"]),
            on_step=response.add,
            on_error=response.fail,
            media=self._media(inputs["prompt_embedding_table"], value("prompt_vocab_size")),
            media_hashes=_hashes(inputs["prompt_table_extra_ids"], length),
            pad_id=value("pad_id"),
            return_logits=value("return_generation_logits", False),
            is_cancelled=response.is_cancelled,
            on_admitted=response.telemetry.admitted,
        )
        self._scheduler.submit(request)

    def _media(self, table: np.ndarray | None, rows: int | None) -> np.ndarray | None:
        if table is None:
            return None
        media = table.reshape(-1, table.shape[-1])
        if media.shape[1] != self._width or (rows is not None and rows != len(media)):
            raise InvalidRequest(
                f"prompt_embedding_table has the shape {list(media.shape)} and prompt_vocab_size is {rows}; the two numbers of "
                f"rows must be equal and the width {self._width}"
            )
        with np.errstate(all="ignore"):
            # The sum is not finite if any value is not, and is faster to check than each value.
            total = np.add.reduce(media, axis=None, dtype=np.float32)
        if not np.isfinite(total):
            raise InvalidRequest("prompt_embedding_table holds NaN or infinite values; all must be finite")
        return media

    def finalize(self) -> None:
        self._publisher.close()
        if self._listener is not None:
            self._listener.close()
        self._scheduler.close()
        self._outbox.close()
        self._tracer.close()
        super().finalize()


class _Response:
    """Turns the scheduler's steps into responses; the stage's outbox sends all ids that are ready in one response."""

    def __init__(self, reply: Reply, outbox: Outbox, telemetry: GenerationTelemetry, inputs: dict[str, Any]) -> None:
        self._reply, self._outbox, self.telemetry = reply, outbox, telemetry
        self._streaming = _value(inputs, "streaming", False)
        self._lock = threading.Lock()
        self._ids: list[int] = []
        if not _value(inputs, "exclude_input_in_output", True):
            self._ids += inputs["input_ids"].reshape(-1)[: _value(inputs, "input_lengths")].tolist()
        self._logits: list[np.ndarray] = []
        self._cached_tokens = 0
        self._last, self._queued, self._failed = False, False, False
        self._error: VideoLlamaError | None = None

    def add(self, step: Step) -> None:
        self.telemetry.token()
        if step.last:
            self.telemetry.ended()
        with self._lock:
            self._cached_tokens += step.cached_tokens
            self._ids.append(step.token)
            if step.logits is not None:
                self._logits.append(step.logits)
            self._last = step.last
            is_due = not self._queued and (self._streaming or step.last)
            self._queued = self._queued or is_due
        if is_due:
            self._outbox.put(self)

    def fail(self, error: VideoLlamaError) -> None:
        self.telemetry.ended()
        with self._lock:
            self._error = error
            is_due, self._queued = not self._queued, True
        if is_due:
            self._outbox.put(self)

    def is_cancelled(self) -> bool:
        return self._failed or self._reply.is_cancelled()

    def flush(self) -> None:
        with self._lock:
            ids, logits, self._ids, self._logits = self._ids, self._logits, [], []
            cached, self._cached_tokens = self._cached_tokens, 0
            last, error, self._queued = self._last, self._error, False
        try:
            if ids and (error is None or self._streaming):
                values: dict[str, Any] = {"output_ids": [[ids]], "sequence_length": [[len(ids)]]}
                if logits:
                    values["generation_logits"] = [[logits]]
                if cached:
                    values[contract.REUSED_BLOCKS.name] = [[cached]]
                self._reply.send(values, last=last)
            if error is not None:
                self._reply.fail(error)
        except Exception:
            self._failed = True  # the caller cannot be reached: the scheduler drops the request
            raise


class _DirectResponse:
    """Turns the scheduler's steps into frames for the stage's own socket, flushed after each step of the batch."""

    def __init__(self, reply: DirectReply, telemetry: GenerationTelemetry) -> None:
        self._reply, self.telemetry = reply, telemetry
        self.is_cancelled = reply.is_cancelled

    def add(self, step: Step) -> None:
        self.telemetry.token()
        if step.last:
            self.telemetry.ended()
        self._reply.send((step.token,), step.cached_tokens, step.last)

    def fail(self, error: VideoLlamaError) -> None:
        self.telemetry.ended()
        self._reply.fail(error)


def _value(inputs: dict[str, Any], name: str, default: Any = None) -> Any:
    """Return the single value of an input, or `default` if the input is absent."""
    value = scalar(inputs[name], name)
    return default if value is None else value


def _sampling(value: Callable[..., Any]) -> ResolvedSampling:
    """Raises: BadSampling on a value out of range."""
    tokens, top_k = value("request_output_len"), value("runtime_top_k", 0)
    values = {field: value(name, getattr(ResolvedSampling, field)) for name, field in contract.SAMPLING_FIELDS.items()}
    SamplingOptions(max_new_tokens=tokens, top_k=top_k, **values)  # checks the ranges
    greedy = top_k == 1 or values["temperature"] == 0
    values["temperature"] = values["temperature"] or 1.0
    return ResolvedSampling(max_new_tokens=tokens, greedy=greedy, top_k=top_k, **values)


def _hashes(extra_ids: np.ndarray | None, length: int) -> np.ndarray | None:
    """Return the media hash at each position, uint64 [L]. Raises: InvalidRequest if there are fewer hashes than ids."""
    if extra_ids is None or not extra_ids.size:
        return None
    hashes = extra_ids.reshape(-1)[:length].astype(np.uint64)
    if len(hashes) != length:
        raise InvalidRequest(f"prompt_table_extra_ids has {len(hashes)} values; input_ids has {length}")
    return hashes


def _end_words(end_id: int, stop_words: np.ndarray | None) -> tuple[tuple[int, ...], ...]:
    """Return the end id and every stop word.

    Args:
        stop_words: [1, 2, L]: token ids in row 0, cumulative end offsets padded with -1 in row 1.
    Raises: InvalidRequest if the offsets do not increase within the ids.
    """
    words: list[tuple[int, ...]] = [(end_id,)] if end_id >= 0 else []
    if stop_words is not None and stop_words.size:
        ids, ends = stop_words.reshape(2, -1).tolist()
        begin = 0
        for end in ends:
            if end < 0:
                break
            if not begin < end <= len(ids):
                raise InvalidRequest(f"stop_words_list has the offsets {ends}; they must rise up to {len(ids)} at most")
            words.append(tuple(ids[begin:end]))
            begin = end
    return tuple(dict.fromkeys(words))
