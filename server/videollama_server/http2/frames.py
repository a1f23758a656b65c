"""HTTP/2 frames and header blocks (RFC 9113, RFC 7541), as far as gRPC calls to Triton need them."""

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x01, 0x01, 0x04, 0x08, 0x20
HEADER_BYTES = 9  # of a frame
NO_ERROR, REFUSED, CANCEL = 0, 7, 8
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 4, 5  # settings
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW, FRAME, MOST = 65_535, 16_384, 2**31 - 1  # HTTP/2's initial window and frame size; the largest window
_POST, _HTTP = b"\x83", b"\x86"  # entries of the static table: `:method: POST`, `:scheme: http`


class BadHeaders(Exception):
    """A header block that is truncated or malformed."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(values: dict[int, int]) -> bytes:
    """Encode a SETTINGS frame."""
    return frame(
        SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values.items())
    )


def window_update(stream: int, size: int) -> bytes:
    """Encode a WINDOW_UPDATE frame of `size` bytes; stream 0 means the connection."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def unpadded(flags: int, payload: bytes) -> bytes:
    """Return a frame's payload without padding and priority fields."""
    begin, end = 0, len(payload)
    if flags & PADDED:
        begin, end = 1, end - payload[0]
    return payload[begin + 5 * bool(flags & PRIORITY) : end]


def request_headers(path: str) -> bytes:
    """The header block of a gRPC call; further fields may be appended."""
    fields = ((":path", path), (":authority", "localhost"), ("te", "trailers"), ("content-type", "application/grpc"))
    return _POST + _HTTP + b"".join(field(name, value) for name, value in fields)


def field(name: str, value: str) -> bytes:
    """Encode a literal field that is not added to the dynamic table."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return _integer(len(data), 7) + data


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    encoded, value = bytearray((most,)), value - most
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_headers(block: bytes) -> dict[bytes, bytes]:
    """Return the literal fields by name.

    Indexed and Huffman-coded fields are left out, because no call needs them: our settings disable the dynamic table, and
    gRPC does not Huffman-code its own fields.

    Raises: BadHeaders.
    """
    fields: dict[bytes, bytes] = {}
    position = 0
    try:
        while position < len(block):
            first = block[position]
            if first & 0x80:  # an indexed field
                _, position = _read_integer(block, position, 7)
                continue
            if first & 0xE0 == 0x20:  # a table size update
                _, position = _read_integer(block, position, 5)
                continue
            index, position = _read_integer(block, position, 6 if first & 0x40 else 4)
            name, position = (None, position) if index else _read_string(block, position)
            value, position = _read_string(block, position)
            if name is not None and value is not None:
                fields[name] = value
    except IndexError as error:
        raise BadHeaders("a header block is truncated") from error
    if position > len(block):
        raise BadHeaders("a header block is truncated")
    return fields


def _read_string(block: bytes, position: int) -> tuple[bytes | None, int]:
    """Return the string, None if it is Huffman-coded, and the position after it."""
    coded = block[position] & 0x80
    length, begin = _read_integer(block, position, 7)
    return (None if coded else block[begin : begin + length]), begin + length


def _read_integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[position] & most
    position += 1
    if value < most:
        return value, position
    for shift in range(0, 35, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise BadHeaders("an integer in a header block is too long")
