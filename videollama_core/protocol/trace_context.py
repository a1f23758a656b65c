"""Which trace a request is part of, in W3C's form: a header of HTTP and of gRPC, a parameter of a request to a stage."""

import re

TRACEPARENT = "traceparent"
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def checked_traceparent(text: str | None) -> str | None:
    """None unless it names a trace and a span in that form."""
    return text if text and _FORM.fullmatch(text) else None
