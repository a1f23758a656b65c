"""Questions that the entry refuses before any work is done."""

import pytest

from videollama_core.media.video import Segment
from videollama_core.protocol.errors import BadSegment, InvalidRequest
from videollama_core.protocol.messages import SamplingOptions, as_conversation
from videollama_server.stages import entry
from videollama_server.stages.entry import Question


def ask(**more) -> Question:
    return Question(as_conversation("Who?"), SamplingOptions(), **more)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"files": (b"x",)}, InvalidRequest),
        ({"kind": "video"}, InvalidRequest),
        ({"kind": "smell", "files": (b"x",)}, InvalidRequest),
        ({"segment": Segment(1.0, None)}, InvalidRequest),
        ({"url": "https://media.example.org/a"}, InvalidRequest),
        ({"kind": "video", "files": (b"x",), "url": "https://media.example.org/a"}, InvalidRequest),
        ({"kind": "frames", "url": "https://media.example.org/a"}, InvalidRequest),
        ({"kind": "video", "files": (b"x",), "segment": Segment(2.0, 1.0)}, BadSegment),
    ],
)
def test_an_invalid_question_is_refused(more, kind):
    with pytest.raises(kind):
        ask(**more)


def test_media_has_a_size_limit(monkeypatch):
    monkeypatch.setattr(entry, "MAX_MEDIA_BYTES", 10)
    with pytest.raises(InvalidRequest, match="11 bytes"):
        ask(kind="frames", files=(b"12345", b"123456"))
