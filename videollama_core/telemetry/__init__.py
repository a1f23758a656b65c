"""What the service tells its operator: figures, traces, log lines; for server and gateway. Imports the protocol alone."""
