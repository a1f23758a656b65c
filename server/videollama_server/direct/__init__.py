"""The language model's own socket: requests and new token ids between two stages of one server, without a passage through Triton.

May import the core; it knows neither the Python backend nor the stages.
"""
