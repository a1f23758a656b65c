"""Read from the bitstream: whether decoding can start at a keyframe, and whether unreferenced pictures can be skipped."""

from collections.abc import Iterator

_H264_IDR, _H264_SLICES = 5, range(1, 6)
_HEVC_ACCESS, _HEVC_SLICES, _HEVC_SPS = range(16, 22), range(32), 33


def is_access_point(codec: str, packet: bytes, header: bytes) -> bool:
    """Whether decoding can start at this keyframe: every picture shown after it is then complete.

    H.264's recovery points do not qualify: the picture may build up gradually, and operations on older references are missed.
    `header` is the stream's extradata.
    """
    if codec == "h264":
        kinds = (unit[0] & 31 for unit in _units(packet, _length_size(header, 4)))
        return next((kind for kind in kinds if kind in _H264_SLICES), 0) == _H264_IDR
    if codec == "hevc":
        kinds = ((unit[0] >> 1) & 63 for unit in _units(packet, _length_size(header, 21)))
        return next((kind for kind in kinds if kind in _HEVC_SLICES), 0) in _HEVC_ACCESS
    return True


def has_unreferenced(codec: str, header: bytes) -> bool:
    """Whether a picture marked as unreferenced can be skipped.

    In HEVC the mark applies to the picture's own temporal layer only: with several, a higher layer may refer to it.
    """
    if codec != "hevc":
        return codec == "h264"
    if header[:1] == b"\1":  # hvcC
        return len(header) > 21 and (header[21] >> 3) & 7 == 1
    layers = [unit[2] >> 1 & 7 for unit in _units(header, 0) if unit[0] >> 1 & 63 == _HEVC_SPS and len(unit) > 2]
    return bool(layers) and not any(layers)


def _length_size(header: bytes, place: int) -> int:
    """Bytes of a NAL unit's length prefix; 0 if units begin with start codes."""
    return (header[place] & 3) + 1 if header[:1] == b"\1" and len(header) > place else 0


def _units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The first bytes of each NAL unit, never empty."""
    place = 0
    if length_size:
        while place + length_size < len(data):
            begin = place + length_size
            length = int.from_bytes(data[place:begin], "big")
            if not length:
                return
            yield data[begin : begin + min(length, 256)]
            place = begin + length
        return
    while (place := data.find(b"\0\0\1", place)) >= 0 and place + 3 < len(data):
        place += 3
        yield data[place : place + 256]
