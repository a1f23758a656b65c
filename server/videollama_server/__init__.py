"""The service around the model: starting, supervising and stopping a Triton server. May import `videollama_core`."""
