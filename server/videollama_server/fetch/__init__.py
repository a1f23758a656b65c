"""Fetching media by URL: a single gate for every entry point of the service, closed unless the operator opens it.

Imports only videollama_core.protocol and the standard library, so that a gateway beside the server can use it too.
"""
