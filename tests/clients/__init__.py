"""Programs of others, unmodified, on a real server with the demo's checkpoint. `make test-clients` installs them."""
