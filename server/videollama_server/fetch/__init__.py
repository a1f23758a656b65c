"""Media that a caller names by URL: one gate, closed unless the operator opens it, for every way into the service.

Imports videollama_core.protocol and the standard library alone, so that a gateway beside the server can use it too.
"""
