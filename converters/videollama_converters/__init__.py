"""Converts a checkpoint into graphs, engines, a plain decoder and a Triton model repository. May import core and server."""
