"""A minimal gRPC client for streamed calls to this server's own Triton, the path of every token.

It implements only as much of HTTP/2 as Triton uses, for peers that trust each other, and never listens. May import none of
the project's other packages.
"""
