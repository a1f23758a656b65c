"""gRPC calls to this server's own Triton with many responses, read as they lie in the socket: the road that each token takes.

HTTP/2 as far as Triton speaks it to a caller that it trusts, and that trusts it; nothing here listens. May import nothing of ours.
"""
