"""What the entry does without Triton: media that are known, and the way of tokens from the language model to the caller.

One event loop serves all answers. May import the core, direct, http2 and `processes`; it knows neither the Python backend nor the stages.
"""
