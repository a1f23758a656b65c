"""Downloads checkpoints of the Hugging Face hub into its cache. May import `steps`."""
