"""The entry's calls to the other stages: by Triton's business logic scripting (BLS), and over gRPC."""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import triton_python_backend_utils as pb
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.contrast import Noise
from videollama_core.media.video import Segment
from videollama_core.prompt import Prompt
from videollama_core.protocol import contract
from videollama_core.protocol.errors import StageFailed, VideoLlamaError, from_wire
from videollama_core.protocol.messages import ResolvedSampling
from videollama_server.processes import is_alive, stage_of, stage_processes
from videollama_server.stages.entry import Generation, Perception
from videollama_server.stages.python_backend import to_array, to_tensor

_GENERATED = ["output_ids", "sequence_length"]
STOP_SECONDS = 0.25  # between two requests to stop one answer


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
        "temperature": [[sampling.temperature]],
        "runtime_top_k": [[1 if sampling.greedy else sampling.top_k]],
        "runtime_top_p": [[sampling.top_p]],
        "repetition_penalty": [[sampling.repetition_penalty]],
        "seed": [[sampling.seed]],
        "prompt_table_extra_ids": prompt.extra_ids(media_hash)[None],
    }
    if sampling.contrasts:
        found |= {"vcd_alpha": [[sampling.vcd_alpha]], "vcd_beta": [[sampling.vcd_beta]]}
    return found


class TritonStages:
    """The other stages of the same server.

    Args:
        address: host:port of the server's own gRPC port; None asks the language model by BLS too.
    """

    def __init__(self, end_ids: Sequence[int], pad_id: int | None, address: str | None = None) -> None:
        self._end_ids, self._pad_id = end_ids, pad_id
        self._responses: Responses = _OverGrpc(address) if address else _over_bls
        self._process = StageProcess(contract.LANGUAGE_MODEL.name)

    def perceive(self, kind: str, files: Sequence[bytes], segment: Segment, noise: Noise | None) -> Perception:
        inputs: dict[str, Any] = {"media": np.array([*files, None], np.object_)[:-1], "media_kind": [kind.encode()]}
        inputs |= {
            name: [value] for name, value in (("start", segment.start), ("end", segment.end)) if value is not None
        }
        noised = {} if noise is None else {"vcd_noise_step": [noise.step], "seed": [noise.seed]}
        found = _ask(contract.PERCEPTION, inputs | noised)
        if None in found.values():
            # The cache holds an answer to somebody who asked for fewer outputs (contract.PERCEPTION): go around it.
            seen = _ask(contract.PREPROCESS, inputs)
            pixels = {name: seen[name].as_numpy() for name in ("frames", "filterbank", "preprocess_span")}
            found = _ask(contract.ENCODER, pixels | noised)
        spans = [float(value) for value in found["perception_spans"].as_numpy()]
        table = found["prompt_embedding_table"]
        if table.is_cpu():
            table = table.as_numpy().copy()  # out of the response's shared memory
        media_hash, rows = (int(found[name].as_numpy().reshape(())) for name in ("media_hash", "prompt_vocab_size"))
        return Perception(
            table, rows, media_hash, {"preprocess": (spans[0], spans[1]), "encoder": (spans[2], spans[3])}
        )

    def generate(
        self, request_id: str, prompt: Prompt, seen: Perception | None, sampling: ResolvedSampling
    ) -> Generation:
        media_hash = None if seen is None else seen.media_hash
        inputs = language_model_inputs(prompt, sampling, self._end_ids, self._pad_id, media_hash)
        inputs |= {"streaming": [[True]], "exclude_input_in_output": [[True]]}
        if seen is not None:
            inputs |= {"prompt_embedding_table": seen.table, "prompt_vocab_size": [[seen.rows]]}
        # Only within the server can a table on a GPU be handed on.
        on_gpu = seen is not None and not isinstance(seen.table, np.ndarray)
        return _TritonGeneration(request_id, inputs, _over_bls if on_gpu else self._responses, self._process.find())


Responses = Callable[[dict[str, Any], str], Iterator[list[int]]]  # inputs, request id -> new ids, message by message


class _TritonGeneration:
    """Reads the responses in a thread: the iterator blocks, for ever if the stage's process is killed."""

    def __init__(self, request_id: str, inputs: dict[str, Any], responses: Responses, process: int | None) -> None:
        self._request_id, self._responses, self._process = request_id, responses, process
        self._messages: queue.SimpleQueue[list[int] | Exception | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        threading.Thread(target=self._read, args=(inputs,), daemon=True).start()

    def _read(self, inputs: dict[str, Any]) -> None:
        try:
            for ids in self._responses(inputs, self._request_id):
                self._messages.put(ids)
            self._messages.put(None)
        except VideoLlamaError as error:
            self._messages.put(error)
        except Exception as error:
            self._messages.put(StageFailed(f"stage {contract.LANGUAGE_MODEL.name}: {error}"))
        finally:
            self._ended.set()

    def next(self, timeout: float) -> list[int] | None:
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            if not self._is_alive():
                raise StageFailed(
                    f"stage {contract.LANGUAGE_MODEL.name}: its process died while it answered; it is being started again, "
                    "send the request again"
                ) from None
            return []
        if isinstance(message, Exception):
            raise message
        return message

    def stop(self) -> None:
        """The `stop` request of the TensorRT-LLM contract: a request that BLS started is not cancelled by itself.

        Sent again until the answer has ended: one that overtakes its request names an id that is not yet known, and is lost.
        """
        if not self._ended.is_set():
            self._ask_to_stop()
            threading.Thread(target=self._stop_at_last, daemon=True).start()

    def _stop_at_last(self) -> None:
        with suppress(Exception):  # a stage that cannot be asked any more has nothing left to stop
            while not self._ended.wait(STOP_SECONDS) and self._is_alive():
                self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        inputs = {"input_ids": [[0]], "input_lengths": [[1]], "request_output_len": [[1]], "stop": [[True]]}
        if self._is_alive():
            for _ in self._responses(inputs, self._request_id):
                pass

    def _is_alive(self) -> bool:
        return self._process is None or is_alive(self._process)


def _over_bls(inputs: dict[str, Any], request_id: str) -> Iterator[list[int]]:
    """Ask the language model within the server."""
    for response in _request(contract.LANGUAGE_MODEL, inputs, _GENERATED, request_id).exec(decoupled=True):
        if response.has_error():
            raise from_wire(response.error().message())
        ids = pb.get_output_tensor_by_name(response, "output_ids")
        if ids is not None:
            yield ids.as_numpy().reshape(-1).tolist()


class _OverGrpc:
    """Ask the language model at the server's own gRPC port.

    Triton 2.51 corrupts the memory of a Python stage that reads many responses of one BLS request (docs/log.md).
    """

    def __init__(self, address: str) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address, options=options))

    def __call__(self, inputs: dict[str, Any], request_id: str) -> Iterator[list[int]]:
        stage = contract.LANGUAGE_MODEL
        request = service_pb2.ModelInferRequest(model_name=stage.name, id=request_id)
        for name, value in inputs.items():
            array = to_array(stage.input(name), value)
            datatype = "FP16" if array.dtype == np.float16 else stage.input(name).wire_dtype  # TensorRT-LLM's tables
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        for name in _GENERATED:
            request.outputs.add(name=name)
        try:
            for message in self._stub.ModelStreamInfer(iter([request])):
                if message.error_message:
                    raise from_wire(message.error_message)
                found = message.infer_response
                for output, raw in zip(found.outputs, found.raw_output_contents, strict=True):
                    if output.name == "output_ids":
                        yield np.frombuffer(raw, np.int32).tolist()
        except grpc.RpcError as error:
            raise StageFailed(f"stage {stage.name}: {error.details()}") from error


def _ask(stage: contract.Stage, inputs: dict[str, Any]) -> dict[str, Any]:
    """Every output of a stage with one response; None for one that did not come. Raises: what the stage reports."""
    outputs = [tensor.name for tensor in stage.outputs]
    response = _request(stage, inputs, outputs).exec()
    if response.has_error():
        raise from_wire(response.error().message())
    return {name: pb.get_output_tensor_by_name(response, name) for name in outputs}


def _request(stage: contract.Stage, inputs: dict[str, Any], outputs: list[str], request_id: str = "") -> Any:
    return pb.InferenceRequest(
        model_name=stage.name,
        requested_output_names=outputs,
        inputs=[to_tensor(stage.input(name), value) for name, value in inputs.items()],
        request_id=request_id,
    )


class StageProcess:
    """The stub process of a stage on this server; all processes are looked through only when the known one is gone."""

    def __init__(self, stage: str) -> None:
        self._stage, self._known = stage, -1

    def find(self) -> int | None:
        """Its process id; None where it has none (a C++ backend) or it cannot be seen."""
        if stage_of(self._known) != self._stage:
            found = stage_processes(os.getppid())
            self._known = next((pid for pid, stage in found.items() if stage == self._stage), -1)
        return None if self._known < 0 else self._known
