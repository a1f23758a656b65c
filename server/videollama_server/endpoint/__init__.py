"""The only process that faces the network: it checks each request and forwards it to Triton's Unix socket.

May import the core's protocol, http2, gRPC and the KServe messages, but neither the supervisor nor the stages.
"""
