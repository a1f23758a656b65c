"""Measurements of measure_decoding.py: the scheduler and the runners of a language model, in one process."""
