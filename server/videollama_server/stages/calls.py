"""The entry's calls to the other stages: through Triton's business logic scripting (BLS), and over gRPC."""

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
from videollama_server.direct.request import DirectRequest
from videollama_server.processes import StageProcess
from videollama_server.sandbox.callers import Callers
from videollama_server.stages.python_backend import to_array, to_tensor

_IDS, _CACHED = contract.OUTPUT_IDS.name, contract.REUSED_BLOCKS.name
_GENERATED = [_IDS, _CACHED]
_RANDOM_SAMPLING = {tensor.name for tensor in (contract.TEMPERATURE, contract.RUNTIME_TOP_P, contract.SEED)}
_STOP = {"input_ids": [[0]], "input_lengths": [[1]], "request_output_len": [[1]], "stop": [[True]]}


def language_model_inputs(
    prompt: Prompt,
    sampling: ResolvedSampling,
    end_ids: Sequence[int],
    pad_id: int | None,
    media_hash: int | None = None,
) -> dict[str, Any]:
    """Return the values of the TensorRT-LLM tensors for a prompt, with a leading batch dimension of 1.

    The first end id becomes `end_id`; every end id also becomes a one-token stop word.
    """
    inputs: dict[str, Any] = {
        "input_ids": prompt.input_ids[None],
        "input_lengths": [[len(prompt.input_ids)]],
        "request_output_len": [[sampling.max_new_tokens]],
        "end_id": [[end_ids[0] if end_ids else -1]],
        "pad_id": [[-1 if pad_id is None else pad_id]],
        "stop_words_list": [[list(end_ids), list(range(1, len(end_ids) + 1))]],
        "runtime_top_k": [[1 if sampling.greedy else sampling.top_k]],
        "prompt_table_extra_ids": prompt.extra_ids(media_hash)[None],
    }
    extensions = {tensor.name for tensor in contract.OWN_SAMPLING}
    for name, field in contract.SAMPLING_FIELDS.items():
        value = getattr(sampling, field)
        # An engine that lacks one of our own tensors rejects it, so their defaults are not sent.
        if name not in extensions or value != getattr(ResolvedSampling, field):
            inputs[name] = [[value]]
    return inputs


def _unused_inputs(sampling: ResolvedSampling, perception: Perception | None) -> set[str]:
    """Names of the tensors that do not affect the answer. Sending one costs a few microseconds in each of three processes."""
    random_sampling = _RANDOM_SAMPLING if sampling.greedy else set()
    return random_sampling | ({contract.PROMPT_EXTRA_IDS.name} if perception is None else set())


class TritonStages:
    """The other stages of the same server.

    Args:
        address: HOST:PORT of the server's own gRPC port; None calls the language model through BLS too.
        language_model: path of the language model's own socket; None if it has none.
    """

    def __init__(
        self, end_ids: Sequence[int], pad_id: int | None, address: str | None = None, language_model: str | None = None
    ) -> None:
        self._end_ids, self._pad_id = tuple(end_ids), pad_id
        self._over_grpc, self._direct = address is not None, language_model is not None
        self.loop = AnswerLoop(address, language_model)
        self._process = StageProcess(contract.LANGUAGE_MODEL.name)
        self._callers = Callers()

    def perceive(self, media: Media, noise: Noise | None, is_cancelled: IsCancelled) -> Perception:
        with self._callers.waiting(is_cancelled, media.caller) as caller:
            outputs = _ask(contract.PERCEPTION, _media(media, caller) | _noise(noise))
            outputs |= _wait_for_encoder(outputs, caller)
        times = [float(value) for value in outputs["perception_spans"].as_numpy()]
        spans = {"preprocess": (times[0], times[1]), "encoder": (times[2], times[3])}
        return replace(_perception(outputs, spans), frames_seen=_frames_seen(outputs))

    def preprocess(self, media: Media, is_cancelled: IsCancelled) -> Pixels:
        with self._callers.waiting(is_cancelled, media.caller) as caller:
            outputs = _ask(contract.PREPROCESS, _media(media, caller))
        frames, filterbank = (outputs[name].as_numpy().copy() for name in ("frames", "filterbank"))
        began, ended = outputs["preprocess_span"].as_numpy()
        return Pixels(frames, filterbank, (float(began), float(ended)), _frames_seen(outputs))

    def encode(self, pixels: Pixels, noise: Noise | None, is_cancelled: IsCancelled) -> Perception:
        inputs = {"frames": pixels.frames, "filterbank": pixels.filterbank} | _noise(noise)
        with self._callers.waiting(is_cancelled) as caller:
            outputs = _wait_for_encoder(_ask(contract.ENCODER, inputs | _caller(caller)), caller)
        began, ended = outputs["perception_spans"].as_numpy()[2:]
        return _perception(outputs, {"encoder": (float(began), float(ended))})

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        perception: Perception | None,
        sampling: ResolvedSampling,
        listener: Listener,
        traceparent: str | None = None,
    ) -> Generation:
        # A table on a GPU can be passed on only within the server.
        on_gpu = perception is not None and not isinstance(perception.table, np.ndarray)
        if self._direct and not on_gpu:
            media = () if perception is None else (perception.table[0], perception.media_hash)
            request = DirectRequest(request_id, prompt, sampling, self._end_ids, self._pad_id, traceparent, *media)
            return DirectGeneration(self.loop, request.to_bytes(), listener)
        media_hash = None if perception is None else perception.media_hash
        inputs = language_model_inputs(prompt, sampling, self._end_ids, self._pad_id, media_hash)
        for name in _unused_inputs(sampling, perception):
            del inputs[name]
        inputs |= {"streaming": [[True]], "exclude_input_in_output": [[True]]}
        if perception is not None:
            inputs |= {"prompt_vocab_size": [[perception.rows]], "prompt_embedding_table": perception.table}
        parameters = {} if traceparent is None else {TRACEPARENT: traceparent}
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


def _caller(caller: str | None) -> dict[str, Any]:
    return {} if caller is None else {"caller": [caller.encode()]}


def _wait_for_encoder(outputs: dict[str, Any], caller: str | None) -> dict[str, Any]:
    """Return the encoder's final outputs. A response without rows ends only one turn, so request the next turn."""
    while caller is not None and not outputs["prompt_vocab_size"].as_numpy().any():
        outputs = _ask(contract.ENCODER, _caller(caller))
    return outputs


def _frames_seen(outputs: dict[str, Any]) -> tuple[FrameSeen, ...]:
    """Return the frames used of a video, without black padding (index -1)."""
    pairs = zip(outputs["frame_index"].as_numpy().tolist(), outputs["frame_time"].as_numpy().tolist(), strict=True)
    return tuple(
        FrameSeen(index, round(time, 6) if math.isfinite(time) else None) for index, time in pairs if index >= 0
    )


def _perception(outputs: dict[str, Any], spans: dict[str, Interval]) -> Perception:
    """Read the encoder's outputs."""
    table = outputs["prompt_embedding_table"]
    if table.is_cpu():
        table = table.as_numpy().copy()  # out of the response's shared memory
    media_hash, rows = (int(outputs[name].as_numpy().reshape(())) for name in ("media_hash", "prompt_vocab_size"))
    return Perception(table, rows, media_hash, spans)


class _BlsGeneration:
    """A request to the language model through BLS.

    A thread of its own reads the responses: their iterator blocks, and blocks forever if the stage's process is killed.
    """

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
        self.process, self.last_message = process, time.monotonic()
        self._ended = threading.Event()

    def start(self) -> None:
        self._loop.call(lambda: self._loop.watch(self))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        error: Exception | None = None
        try:
            for ids, cached in _over_bls(self._inputs, self._request_id, self._parameters):
                self.last_message = time.monotonic()
                if cached:
                    self._loop.call(partial(self._listener.on_cached_tokens, cached[0]))
                self._loop.call(partial(self._listener.on_ids, ids))
        except VideoLlamaError as failure:
            error = failure
        except Exception as failure:
            error = StageFailed(f"stage {contract.LANGUAGE_MODEL.name}: {failure}")
        self._loop.call(partial(self._end, error))

    def on_death(self) -> None:
        self._end(StageFailed(DIED))

    def _end(self, error: Exception | None) -> None:
        self._loop.forget(self)
        if not self._ended.is_set():
            self._ended.set()
            self._listener.on_end(error)

    def stop(self) -> None:
        """Send the `stop` request until the generation has ended, as in generation.py: BLS does not cancel its requests."""
        if not self._ended.is_set():
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        with suppress(Exception):  # a stage that cannot be reached has nothing left to stop
            while True:
                for _ in _over_bls(_STOP, self._request_id, {}):
                    pass
                if self._ended.wait(STOP_SECONDS):
                    return


def _over_bls(inputs: dict[str, Any], request_id: str, parameters: dict[str, str]) -> Iterator[tuple[list[int], ...]]:
    """Call the language model through BLS. Yields: new ids, and a list with the number of cached tokens or an empty list."""
    request = _request(contract.LANGUAGE_MODEL, inputs, _GENERATED, request_id, parameters)
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise from_wire(response.error().message())
        tensors = [pb.get_output_tensor_by_name(response, name) for name in (_IDS, _CACHED)]
        ids, cached = ([] if tensor is None else tensor.as_numpy().reshape(-1).tolist() for tensor in tensors)
        if ids:
            yield ids, cached


def _message(inputs: dict[str, Any], request_id: str, parameters: dict[str, str]) -> bytes:
    """Return the request to the language model as a serialized ModelInferRequest."""
    stage = contract.LANGUAGE_MODEL
    arrays = {name: to_array(stage.input(name), value) for name, value in inputs.items()}
    return request_message(stage, arrays, _GENERATED, request_id, parameters)


def _ask(stage: contract.Stage, inputs: dict[str, Any]) -> dict[str, Any]:
    """Call a stage that sends one response; return all its outputs by name. Raises: the error that the stage reports."""
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
