"""VideoLLaMA 2 itself, independent of any server: no Triton, no gRPC. `pipeline.py` runs all of it in one process."""
