"""Measures media preparation, from file to pixels. May import `videollama_core.media`, and decord if it is installed."""
