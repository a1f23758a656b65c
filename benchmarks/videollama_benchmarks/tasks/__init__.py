"""The benchmarks: how each is read, asked, and scored."""
