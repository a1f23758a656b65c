"""A converted checkpoint and what runs its encoders. May import every room but `generation`."""
