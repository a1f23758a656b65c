"""Checkpoint folders in every published layout, read and checked for completeness. May import `protocol` and `model`."""
