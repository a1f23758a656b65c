"""The decoding sandbox for hostile media: caged processes with resource limits, killed when their caller disconnects."""
