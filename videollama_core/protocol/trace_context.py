"""Metadata of a request: its W3C trace context, who sends its metrics, and what the endpoint tells the entry about it.

Carried as headers of HTTP and gRPC, and as parameters of a request to a stage.
"""

import re

TRACEPARENT = "traceparent"
MEASURED = "x-vl2-measured"  # with YES: the gateway sends this request's metrics, and the server sends none
YES = "1"
# Set by the endpoint alone. Opaque ids: of the caller, of the request, and of the request that a ping cancels.
CALLER, REQUEST, CANCELLED = "x-vl2-caller", "x-vl2-request", "x-vl2-cancelled"
RESERVED = (CALLER, REQUEST, CANCELLED)
_MARK = re.compile(r"[0-9a-f]{16}")
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def checked_traceparent(text: str | None) -> str | None:
    """The traceparent, or None unless it names a trace and a span in W3C's form."""
    return text if text and _FORM.fullmatch(text) else None


def checked_mark(text: str | None) -> str:
    """One of the endpoint's ids, or "" unless it has the form of one."""
    return text if text and _MARK.fullmatch(text) else ""
