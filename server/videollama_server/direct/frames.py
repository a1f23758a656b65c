"""The protocol of the socket: frames of a header and a payload, in native byte order.

    entry -> stage    REQUEST   a serialized DirectRequest (request.py)
                      STOP      no payload; ends a request
    stage -> entry    IDS       number of cached prompt tokens (0 in all but the first), then new token ids: int32
                      END       no payload; the answer is complete
                      ERROR     `Kind: message`, in UTF-8

A number identifies a request on its connection. Each ends with END, ERROR or STOP.
"""

import struct

REQUEST, STOP, IDS, END, ERROR = range(1, 6)
HEADER = struct.Struct("=IBI")  # length of the payload in bytes, kind, number


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return HEADER.pack(len(payload), kind, number) + payload
