"""What goes with a request beside it: its trace in W3C's form, who measures it, and whose it is.

Headers of HTTP and gRPC, parameters of a request to a stage.
"""

import re

TRACEPARENT = "traceparent"
MEASURED = "x-vl2-measured"  # with YES: the gateway sends this request's metrics, so that the server sends none of it
YES = "1"
CALLER = "x-vl2-caller"  # from the endpoint alone: a mark of who asks, which tells nothing else
_MARK = re.compile(r"[0-9a-f]{16}")
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def checked_traceparent(text: str | None) -> str | None:
    """None unless it names a trace and a span in that form."""
    return text if text and _FORM.fullmatch(text) else None


def checked_caller(text: str | None) -> str:
    """ "" unless it is a mark."""
    return text if text and _MARK.fullmatch(text) else ""
