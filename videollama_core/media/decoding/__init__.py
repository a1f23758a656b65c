"""A video file -> its wanted frames, by PyAV. May import `media` and what that may import."""
