"""The language model: one scheduler over a small interface that runs its steps. May import every folder of the core."""
