"""Observability of server and gateway: metrics, traces and log lines. Imports the protocol alone."""
