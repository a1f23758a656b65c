"""A synthetic world of moving shapes and sounds, with questions whose answers are known."""
