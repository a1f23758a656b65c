"""A converted checkpoint and the engines that run its encoders. May import every folder but `generation`."""
