"""Benchmarks: the quality of answers, asked through the service or in one process."""
