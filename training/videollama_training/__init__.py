"""Train VideoLLaMA 2: the connector alone, the whole model, or low-rank adapters."""
