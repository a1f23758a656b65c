"""A synthetic world of moving shapes and tones, with questions whose answers are known."""
