"""Errors keep their kind across the wire, and Triton's own messages are classified."""

import pytest

from videollama_core.protocol import errors
from videollama_core.protocol.errors import (
    KINDS,
    Overloaded,
    ServerUnreachable,
    StageDied,
    StageFailed,
    StageRestarting,
    VideoLlamaError,
    from_wire,
)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_survives_the_wire(kind):
    """An ensemble puts its own prefix in front, and so does a second ensemble around it."""
    error = kind("found 0 frames: wanted 1; do this")
    for message in (error.to_wire(), f"in ensemble 'ensemble', in ensemble 'perception', {error.to_wire()}"):
        received = from_wire(message)
        assert type(received) is kind and str(received) == str(error)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_has_codes(kind):
    assert kind.triton_code in {"INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"}
    assert kind.exit_code in {1, 2, 3, 130}
    assert issubclass(kind, VideoLlamaError) and kind.__name__ in errors.__doc__ and kind.__doc__


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Stub process 'tensorrt_llm_0_0' is not healthy.", StageDied),
        ("Request for unknown model: 'videollama2' has no available versions", StageRestarting),
        ("Failed for execute the inference request. Model 'tensorrt_llm' is not ready.", StageRestarting),
        ("Request for unknown model: 'x' is not found", ServerUnreachable),
        ("Exceeds maximum queue size", Overloaded),
        ("Failed to increase the shared memory pool size for key 'vl2-x' to 9 bytes. If you are running", Overloaded),
        ("something nobody has seen", StageFailed),
    ],
)
def test_tritons_messages_are_classified(message, kind):
    assert type(from_wire(message)) is kind
