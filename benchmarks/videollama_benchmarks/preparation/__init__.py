"""How long media take from file to pixels. May import `videollama_core.media`, and decord where it is installed."""
