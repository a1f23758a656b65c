"""What measure_decoding.py measures: the scheduler and the runners of a language model, in one process."""
