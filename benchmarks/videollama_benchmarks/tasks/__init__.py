"""The benchmarks: how each is loaded, asked and scored."""
