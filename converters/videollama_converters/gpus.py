"""The GPUs that plans are made for, with their makers' specifications."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """What its maker states about a GPU."""

    capability: float  # compute capability
    gigabytes: float  # of memory, 10^9 bytes
    bandwidth: float  # terabytes per second
    teraflops: float  # bfloat16, dense


GPUS = {
    "A100-80": Gpu(8.0, 80.0, 2.0, 312.0),
    "L40S": Gpu(8.9, 48.0, 0.864, 362.0),
    "H100": Gpu(9.0, 80.0, 3.35, 989.0),
    "H200": Gpu(9.0, 141.0, 4.8, 989.0),
}
