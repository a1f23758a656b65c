"""Trains VideoLLaMA 2: only the connector, the whole model, or low-rank adapters."""
