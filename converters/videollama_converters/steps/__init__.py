"""What a conversion step is, when it is valid, and how far it is. Imports nothing else of the converters."""
