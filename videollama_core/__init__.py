"""What VideoLLaMA 2 is, free of any server: no Triton, no gRPC. `pipeline.py` tells the whole story in one process."""
