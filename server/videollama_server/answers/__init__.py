"""The parts of the entry that do not depend on Triton: the media cache, and streaming tokens to callers.

One event loop serves all answers. May import the core, direct, http2 and `processes`, but neither the Python backend nor the
stages.
"""
