"""Training data: published layouts, samples, their token ids, and batches."""
