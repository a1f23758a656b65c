"""Encoded media -> frames at tower size and filterbanks. May import `protocol` and `model.config`; never torch."""
