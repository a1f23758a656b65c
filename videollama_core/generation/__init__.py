"""The language model: one scheduler over a small interface for what runs a step. May import every room of the core."""
