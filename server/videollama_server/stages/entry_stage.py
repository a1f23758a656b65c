"""The public entry as a Triton stage: tensors -> Question, pieces -> tensors."""

import json
import os
import secrets
from dataclasses import asdict
from typing import Any

import numpy as np

from videollama_core.media.video import Segment
from videollama_core.protocol import contract
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.messages import Conversation, SamplingOptions, as_conversation, conversation_from_json
from videollama_server.installation import ADDRESS_VARIABLE, check_gpu_tables
from videollama_server.stages.calls import TritonStages
from videollama_server.stages.entry import Entry, Piece, Question
from videollama_server.stages.python_backend import DecoupledStage, Reply, bundle_of, scalar, text


def read_conversation(question: np.ndarray | None, messages: np.ndarray | None) -> Conversation:
    """Raises: InvalidRequest unless exactly one of the two is there."""
    if (question is None) == (messages is None):
        raise InvalidRequest("send either question (one string) or messages (JSON list of {role, content})")
    if messages is not None:
        return conversation_from_json(scalar(messages, "messages"))
    return as_conversation(scalar(question, "question"))


def read_options(tensors: dict[str, np.ndarray | None], stop: np.ndarray | None = None) -> SamplingOptions:
    """Raises: BadSampling on a value out of range."""
    options = [option.name for option in (*contract.OPTIONS, *contract.CONTRAST_OPTIONS) if option.name in tensors]
    values = {name: scalar(tensors[name], name) for name in options}
    words = () if stop is None else tuple(text(word, "stop") for word in stop.reshape(-1))
    return SamplingOptions(**values, stop=words)


def outputs(piece: Piece) -> dict[str, Any]:
    """A piece as outputs of contract.ENTRY; those that it does not have are left out."""
    values: dict[str, Any] = {"text": [piece.text.encode()]}
    if piece.output_ids:
        values["output_ids"] = piece.output_ids
    if piece.summary:
        values["summary"] = [json.dumps(asdict(piece.summary)).encode()]
    return values


class EntryStage(DecoupledStage):
    contract = contract.ENTRY

    def load(self, args: dict[str, str]) -> None:
        bundle = bundle_of(args)
        tokenizer = bundle.tokenizer()
        if bundle.keeps_media_tokens_on_gpu:
            check_gpu_tables()
        end_ids, address = bundle.generation_defaults(tokenizer).end_ids, os.environ.get(ADDRESS_VARIABLE)
        stages = TritonStages(end_ids, tokenizer.pad_id, address)
        self._entry = Entry(bundle, stages)
        self._process = f"{os.getpid()}-{secrets.token_hex(4)}".encode()

    def handle_at_once(self, inputs: dict[str, Any], request_id: str, reply: Reply) -> bool:
        """A ping is answered at once; for a question, the first message tells which process has it."""
        is_ping = bool(scalar(inputs["ping"], "ping"))
        reply.send({"process": [self._process]}, last=is_ping)
        return is_ping

    def handle(self, inputs: dict[str, Any], reply: Reply) -> None:
        self._entry.answer(_read_question(inputs), lambda piece: reply.send(outputs(piece)), reply.is_cancelled)


def _read_question(inputs: dict[str, Any]) -> Question:
    media = inputs["media"]
    return Question(
        conversation=read_conversation(inputs["question"], inputs["messages"]),
        options=read_options(inputs, inputs["stop"]),
        kind=scalar(inputs["media_kind"], "media_kind"),
        files=() if media is None else tuple(media.reshape(-1)),
        segment=Segment(scalar(inputs["start"], "start"), scalar(inputs["end"], "end")),
    )
