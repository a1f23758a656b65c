"""The language model's own socket, which carries requests and new token ids between two stages without Triton.

May import the core, but neither the Python backend nor the stages.
"""
