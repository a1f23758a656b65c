"""The decoding sandbox for hostile media: confined processes with limits, killed when their caller disconnects."""
