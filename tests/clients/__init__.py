"""Unmodified third-party clients against a real server with the demo's checkpoint. `make test-clients` installs them."""
