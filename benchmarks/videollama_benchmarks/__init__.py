"""Benchmarks of answer quality, through the service or in one process, and of speed."""
