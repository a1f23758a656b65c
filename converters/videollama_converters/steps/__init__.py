"""Conversion steps: what one is, when its result is still valid, its progress. Imports nothing else of the converters."""
