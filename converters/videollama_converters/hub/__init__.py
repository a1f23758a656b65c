"""Checkpoints of the Hugging Face hub, downloaded into its cache. May import `steps`."""
