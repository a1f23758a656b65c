"""The entry's calls to the other stages, over Triton's business logic scripting (BLS)."""

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from videollama_core import contract
from videollama_core.entry import Generation, Perception
from videollama_core.errors import StageFailed, from_wire
from videollama_core.messages import ResolvedSampling
from videollama_core.prompt import Prompt
from videollama_core.stage import to_tensor
from videollama_core.video import Segment


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
    return {
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


class TritonStages:
    """The other stages of the same server."""

    def __init__(self, end_ids: Sequence[int], pad_id: int | None) -> None:
        self._end_ids, self._pad_id = end_ids, pad_id

    def perceive(self, kind: str, files: Sequence[bytes], segment: Segment) -> Perception:
        inputs: dict[str, Any] = {"media": np.array([*files, None], np.object_)[:-1], "media_kind": [kind.encode()]}
        inputs |= {
            name: [value] for name, value in (("start", segment.start), ("end", segment.end)) if value is not None
        }
        found = _ask(contract.PERCEPTION, inputs)
        if None in found.values():
            # The cache holds an answer to somebody who asked for fewer outputs (contract.PERCEPTION): go around it.
            seen = _ask(contract.PREPROCESS, inputs)
            found = _ask(
                contract.ENCODER, {name: seen[name].as_numpy() for name in ("frames", "filterbank", "preprocess_span")}
            )
        spans = [float(value) for value in found["perception_spans"].as_numpy()]
        table = found["prompt_embedding_table"].as_numpy().copy()  # out of the response's shared memory
        media_hash = int(found["media_hash"].as_numpy().reshape(()))
        return Perception(table, media_hash, {"preprocess": (spans[0], spans[1]), "encoder": (spans[2], spans[3])})

    def generate(
        self, request_id: str, prompt: Prompt, seen: Perception | None, sampling: ResolvedSampling
    ) -> Generation:
        media_hash = None if seen is None else seen.media_hash
        inputs = language_model_inputs(prompt, sampling, self._end_ids, self._pad_id, media_hash)
        inputs |= {"streaming": [[True]], "exclude_input_in_output": [[True]]}
        if seen is not None:
            inputs |= {"prompt_embedding_table": seen.table, "prompt_vocab_size": [[seen.table.shape[1]]]}
        return _TritonGeneration(request_id, inputs)


class _TritonGeneration:
    """Reads the responses in a thread: the iterator blocks, for ever if the stage's process is killed."""

    def __init__(self, request_id: str, inputs: dict[str, Any]) -> None:
        self._request_id = request_id
        self._messages: queue.SimpleQueue[list[int] | Exception | None] = queue.SimpleQueue()
        self._process = stage_process(contract.LANGUAGE_MODEL.name)
        request = _request(contract.LANGUAGE_MODEL, inputs, ["output_ids", "sequence_length"], request_id)
        threading.Thread(target=self._read, args=(request,), daemon=True).start()

    def _read(self, request: Any) -> None:
        try:
            for response in request.exec(decoupled=True):
                if response.has_error():
                    self._messages.put(from_wire(response.error().message()))
                    return
                ids = pb.get_output_tensor_by_name(response, "output_ids")
                if ids is not None:
                    self._messages.put(ids.as_numpy().reshape(-1).tolist())
            self._messages.put(None)
        except Exception as error:
            self._messages.put(StageFailed(f"stage {contract.LANGUAGE_MODEL.name}: {error}"))

    def next(self, timeout: float) -> list[int] | None:
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            if self._process is not None and not process_alive(self._process):
                raise StageFailed(
                    f"stage {contract.LANGUAGE_MODEL.name}: its process died while it answered; it is being started again, "
                    "send the request again"
                ) from None
            return []
        if isinstance(message, Exception):
            raise message
        return message

    def stop(self) -> None:
        """The `stop` request of the TensorRT-LLM contract: a child started by BLS is not cancelled by itself."""
        inputs = {"input_ids": [[0]], "input_lengths": [[1]], "request_output_len": [[1]], "stop": [[True]]}
        if self._process is None or process_alive(self._process):
            for _ in _request(
                contract.LANGUAGE_MODEL, inputs, ["output_ids", "sequence_length"], self._request_id
            ).exec(decoupled=True):
                pass


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


def stage_process(stage: str) -> int | None:
    """Process id of a stage's stub on this server; None where it has none (a C++ backend) or it cannot be seen."""
    for pid in _children(os.getppid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(part.endswith(f"/{stage}/1/model.py".encode()) for part in command) and process_alive(pid):
            return pid
    return None


def _children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            yield int(stat.parent.name)


def process_alive(pid: int) -> bool:
    """False too for a process that ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
