"""A checkpoint with a published tower and a small decoder: what it is made of, and what is measured of a server of it.

May import the client, the core, the converters, `load`, and `overhead` for its server.
"""
