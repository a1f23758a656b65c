"""The entry's calls to the other stages: by Triton's business logic scripting (BLS), and over gRPC."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from videollama_core.contrast import Noise
from videollama_core.engines.media_cache import IsCancelled
from videollama_core.prompt import Prompt
from videollama_core.protocol import contract
from videollama_core.protocol.errors import StageFailed, VideoLlamaError, from_wire
from videollama_core.protocol.messages import FrameSeen, ResolvedSampling
from videollama_core.protocol.trace_context import TRACEPARENT
from videollama_server.answers.answering import Generation, Listener
from videollama_server.answers.generation import DIED, STOP_SECONDS, AnswerLoop, DirectGeneration, GrpcGeneration
from videollama_server.answers.known_media import Interval, Media, Perception, Pixels
from videollama_server.answers.request_message import request_message
from videollama_server.processes import StageProcess
from videollama_server.sandbox.callers import Callers
from videollama_server.stages.python_backend import to_array, to_tensor

_IDS, _CACHED = contract.OUTPUT_IDS.name, contract.REUSED_BLOCKS.name
_GENERATED = [_IDS, _CACHED]
_OF_CHANCE = {tensor.name for tensor in (contract.TEMPERATURE, contract.RUNTIME_TOP_P, contract.SEED)}
_STOP = {"input_ids": [[0]], "input_lengths": [[1]], "request_output_len": [[1]], "stop": [[True]]}


def language_model_inputs(
    prompt: Prompt,
    sampling: ResolvedSampling,
    end_ids: Sequence[int],
    pad_id: int | None,
    media_hash: int | None = None,
) -> dict[str, Any]:
    """Values of the TensorRT-LLM tensors for a prompt, with the leading batch dimension of 1.

    The first end id is `end_id`; every end id is also a stop word of one token.
    """
    found: dict[str, Any] = {
        "input_ids": prompt.input_ids[None],
        "input_lengths": [[len(prompt.input_ids)]],
        "request_output_len": [[sampling.max_new_tokens]],
        "end_id": [[end_ids[0] if end_ids else -1]],
        "pad_id": [[-1 if pad_id is None else pad_id]],
        "stop_words_list": [[list(end_ids), list(range(1, len(end_ids) + 1))]],
        "runtime_top_k": [[1 if sampling.greedy else sampling.top_k]],
        "prompt_table_extra_ids": prompt.extra_ids(media_hash)[None],
    }
    own = {tensor.name for tensor in contract.OWN_SAMPLING}
    for name, field in contract.SAMPLING_FIELDS.items():
        value = getattr(sampling, field)
        if name not in own or value != getattr(ResolvedSampling, field):  # an engine without the tensor takes none
            found[name] = [[value]]
    return found


def _saying_nothing(sampling: ResolvedSampling, seen: Perception | None) -> set[str]:
    """Tensors that change nothing of an answer: each costs the way to the language model some microseconds in three processes."""
    return (_OF_CHANCE if sampling.greedy else set()) | ({contract.PROMPT_EXTRA_IDS.name} if seen is None else set())


class TritonStages:
    """The other stages of the same server.

    Args:
        address: host:port of the server's own gRPC port; None asks the language model by BLS too.
        language_model: path of the language model's own socket; None where it has none.
    """

    def __init__(
        self, end_ids: Sequence[int], pad_id: int | None, address: str | None = None, language_model: str | None = None
    ) -> None:
        self._end_ids, self._pad_id = end_ids, pad_id
        self._over_grpc, self._direct = address is not None, language_model is not None
        self.loop = AnswerLoop(address, language_model)
        self._process = StageProcess(contract.LANGUAGE_MODEL.name)
        self._callers = Callers()

    def perceive(self, media: Media, noise: Noise | None, is_cancelled: IsCancelled) -> Perception:
        with self._callers.waiting(is_cancelled, media.caller) as caller:
            found = _ask(contract.PERCEPTION, _media(media, caller) | _noise(noise))
            found |= _encoded(found, caller)
        moments = [float(value) for value in found["perception_spans"].as_numpy()]
        spans = {"preprocess": (moments[0], moments[1]), "encoder": (moments[2], moments[3])}
        return replace(_perception(found, spans), looked_at=_looked_at(found))

    def preprocess(self, media: Media, is_cancelled: IsCancelled) -> Pixels:
        with self._callers.waiting(is_cancelled, media.caller) as caller:
            found = _ask(contract.PREPROCESS, _media(media, caller))
        frames, filterbank = (found[name].as_numpy().copy() for name in ("frames", "filterbank"))
        began, ended = found["preprocess_span"].as_numpy()
        return Pixels(frames, filterbank, (float(began), float(ended)), _looked_at(found))

    def encode(self, pixels: Pixels, noise: Noise | None, is_cancelled: IsCancelled) -> Perception:
        inputs = {"frames": pixels.frames, "filterbank": pixels.filterbank} | _noise(noise)
        with self._callers.waiting(is_cancelled) as caller:
            found = _encoded(_ask(contract.ENCODER, inputs | _caller(caller)), caller)
        began, ended = found["perception_spans"].as_numpy()[2:]
        return _perception(found, {"encoder": (float(began), float(ended))})

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        seen: Perception | None,
        sampling: ResolvedSampling,
        listener: Listener,
        traceparent: str | None = None,
    ) -> Generation:
        media_hash = None if seen is None else seen.media_hash
        inputs = language_model_inputs(prompt, sampling, self._end_ids, self._pad_id, media_hash)
        for name in _saying_nothing(sampling, seen):
            del inputs[name]
        inputs |= {"streaming": [[True]], "exclude_input_in_output": [[True]]}
        if seen is not None:
            inputs |= {"prompt_vocab_size": [[seen.rows]], "prompt_embedding_table": seen.table}
        parameters = {} if traceparent is None else {TRACEPARENT: traceparent}
        # Only within the server can a table on a GPU be handed on.
        on_gpu = seen is not None and not isinstance(seen.table, np.ndarray)
        if self._direct and not on_gpu:
            return DirectGeneration(self.loop, _message(inputs, request_id, parameters), listener)
        process = self._process.find()
        if on_gpu or not self._over_grpc:
            return _BlsGeneration(self.loop, inputs, request_id, parameters, listener, process)
        message = _message(inputs, request_id, parameters)
        stop = lambda: _message(_STOP, request_id, {})  # noqa: E731
        return GrpcGeneration(self.loop, message, stop, listener, process)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.loop.later(seconds, call)


def _media(media: Media, caller: str | None) -> dict[str, Any]:
    files = np.array([*media.files, None], np.object_)[:-1]
    inputs: dict[str, Any] = {"media": files, "media_kind": [media.kind.encode()]}
    options = asdict(media.segment) | {"caller": caller}
    return inputs | {
        name: [value.encode() if isinstance(value, str) else value]
        for name, value in options.items()
        if value is not None
    }


def _noise(noise: Noise | None) -> dict[str, Any]:
    return {} if noise is None else {"vcd_noise_step": [noise.step], "seed": [noise.seed]}


def _caller(note: str | None) -> dict[str, Any]:
    return {} if note is None else {"caller": [note.encode()]}


def _encoded(found: dict[str, Any], caller: str | None) -> dict[str, Any]:
    """What the encoder says when it is done: until then each answer was one turn, and the next one is asked for."""
    while caller is not None and not found["prompt_vocab_size"].as_numpy().any():
        found = _ask(contract.ENCODER, _caller(caller))
    return found


def _looked_at(found: dict[str, Any]) -> tuple[FrameSeen, ...]:
    """The frames of a video; black padding is none."""
    pairs = zip(found["frame_index"].as_numpy().tolist(), found["frame_time"].as_numpy().tolist(), strict=True)
    return tuple(
        FrameSeen(index, round(time, 6) if math.isfinite(time) else None) for index, time in pairs if index >= 0
    )


def _perception(found: dict[str, Any], spans: dict[str, Interval]) -> Perception:
    """Of the encoder's outputs."""
    table = found["prompt_embedding_table"]
    if table.is_cpu():
        table = table.as_numpy().copy()  # out of the response's shared memory
    media_hash, rows = (int(found[name].as_numpy().reshape(())) for name in ("media_hash", "prompt_vocab_size"))
    return Perception(table, rows, media_hash, spans)


class _BlsGeneration:
    """A request of the language model within the server, read in a thread: the iterator blocks, for ever if the stage's process
    is killed."""

    def __init__(
        self,
        loop: AnswerLoop,
        inputs: dict[str, Any],
        request_id: str,
        parameters: dict[str, str],
        listener: Listener,
        process: int | None,
    ) -> None:
        self._loop, self._inputs, self._request_id, self._listener = loop, inputs, request_id, listener
        self._parameters = parameters
        self.process, self.heard = process, time.monotonic()
        self._ended = threading.Event()

    def start(self) -> None:
        self._loop.call(lambda: self._loop.watch(self))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        error: Exception | None = None
        try:
            for ids, cached in _over_bls(self._inputs, self._request_id, self._parameters):
                self.heard = time.monotonic()
                if cached:
                    self._loop.call(partial(self._listener.on_cached_tokens, cached[0]))
                self._loop.call(partial(self._listener.on_ids, ids))
        except VideoLlamaError as found:
            error = found
        except Exception as found:
            error = StageFailed(f"stage {contract.LANGUAGE_MODEL.name}: {found}")
        self._loop.call(partial(self._end, error))

    def on_death(self) -> None:
        self._end(StageFailed(DIED))

    def _end(self, error: Exception | None) -> None:
        self._loop.forget(self)
        if not self._ended.is_set():
            self._ended.set()
            self._listener.on_end(error)

    def stop(self) -> None:
        """A request that BLS started is not cancelled by itself. Sent again until it has ended, as in generation.py."""
        if not self._ended.is_set():
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        with suppress(Exception):  # a stage that cannot be asked any more has nothing left to stop
            while True:
                for _ in _over_bls(_STOP, self._request_id, {}):
                    pass
                if self._ended.wait(STOP_SECONDS):
                    return


def _over_bls(inputs: dict[str, Any], request_id: str, parameters: dict[str, str]) -> Iterator[tuple[list[int], ...]]:
    """Ask the language model within the server. Yields: new ids, and the number of cached tokens where it is said."""
    request = _request(contract.LANGUAGE_MODEL, inputs, _GENERATED, request_id, parameters)
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise from_wire(response.error().message())
        found = [pb.get_output_tensor_by_name(response, name) for name in (_IDS, _CACHED)]
        ids, cached = ([] if tensor is None else tensor.as_numpy().reshape(-1).tolist() for tensor in found)
        if ids:
            yield ids, cached


def _message(inputs: dict[str, Any], request_id: str, parameters: dict[str, str]) -> bytes:
    """The same request for gRPC."""
    stage = contract.LANGUAGE_MODEL
    arrays = {name: to_array(stage.input(name), value) for name, value in inputs.items()}
    return request_message(stage, arrays, _GENERATED, request_id, parameters)


def _ask(stage: contract.Stage, inputs: dict[str, Any]) -> dict[str, Any]:
    """Every output of a stage with one response. Raises: what the stage reports."""
    outputs = [tensor.name for tensor in stage.outputs]
    response = _request(stage, inputs, outputs).exec()
    if response.has_error():
        raise from_wire(response.error().message())
    return {name: pb.get_output_tensor_by_name(response, name) for name in outputs}


def _request(
    stage: contract.Stage,
    inputs: dict[str, Any],
    outputs: list[str],
    request_id: str = "",
    parameters: dict[str, str] | None = None,
) -> Any:
    more = {"parameters": parameters} if parameters else {}
    return pb.InferenceRequest(
        model_name=stage.name,
        requested_output_names=outputs,
        inputs=[to_tensor(stage.input(name), value) for name, value in inputs.items()],
        request_id=request_id,
        **more,
    )
