"""Measures a server of a checkpoint with a published tower and a small decoder.

May import the client, the core, the converters, `load`, and `overhead` for its server.
"""
