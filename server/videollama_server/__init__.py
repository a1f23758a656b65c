"""The service around the model: start, supervise and stop a Triton server. May import `videollama_core`."""
