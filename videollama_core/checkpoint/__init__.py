"""Checkpoint folders in every published layout, read and proved complete. May import `protocol` and `model`."""
