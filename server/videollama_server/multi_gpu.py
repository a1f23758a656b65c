"""A server on several GPUs: one process per rank under mpirun, of which the first serves (TensorRT-LLM's leader mode).

Source: triton_backend/scripts/launch_triton_server.py at v1.2.1.
"""

from collections.abc import Sequence

from videollama_core.protocol.contract import LANGUAGE_MODEL

_POOL = "--cuda-memory-pool-byte-size="
_OWN = ("--load-model=", "--model-control-mode=", _POOL)  # options of the first rank only


def with_ranks(server: Sequence[str], world_size: int, pool_bytes: int = 0, prefix: str = "vl2-") -> list[str]:
    """Return the command that runs the server on `world_size` GPUs; each rank names its own shared memory.

    The other ranks load only the language model and stay in its initialization, so they never open a port.

    Args:
        world_size: number of ranks; 0 or 1 means one process without mpirun.
        pool_bytes: memory of the first GPU for tensors that are passed between stages.
        prefix: of the names of shared memory regions.
    """
    region = f"--backend-config=python,shm-region-prefix-name={prefix}"
    # Without this option, each stage is started twice, first only to auto-complete its config.
    arguments = [*server, "--disable-auto-complete-config"]
    if pool_bytes:
        arguments.append(f"{_POOL}0:{pool_bytes}")
    if world_size <= 1:
        return [*arguments, region]
    command = ["mpirun", "--allow-run-as-root"]
    for rank in range(world_size):
        shared = [argument for argument in arguments if not argument.startswith(_OWN)] if rank else arguments
        only = ["--model-control-mode=explicit", f"--load-model={LANGUAGE_MODEL.name}"] if rank else []
        command += [":"] * bool(rank) + ["-n", "1", *shared, *only, f"{region}{rank}-"]
    return command
