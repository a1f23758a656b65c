"""A server over several GPUs: one process per rank under mpirun, of which the first answers (TensorRT-LLM's leader mode).

Source: triton_backend/scripts/launch_triton_server.py at v1.2.1.
"""

from collections.abc import Sequence

from videollama_core.protocol.contract import LANGUAGE_MODEL

_POOL = "--cuda-memory-pool-byte-size="
_OWN = ("--load-model=", "--model-control-mode=", _POOL)  # of the first rank


def with_ranks(server: Sequence[str], world_size: int, pool_bytes: int = 0, prefix: str = "vl2-") -> list[str]:
    """The server's command on `world_size` GPUs, each rank with shared memory of its own name.

    The other ranks load the language model alone and stay in its initialisation: they never come to open a port.

    Args:
        world_size: 0 or 1: one process.
        pool_bytes: of the first GPU's memory, for tensors that go from stage to stage there.
        prefix: of the names of shared memory.
    """
    region = f"--backend-config=python,shm-region-prefix-name={prefix}"
    words = [
        *server,
        "--disable-auto-complete-config",
    ]  # or each stage is started twice: first to be asked for its config
    if pool_bytes:
        words.append(f"{_POOL}0:{pool_bytes}")
    if world_size <= 1:
        return [*words, region]
    found = ["mpirun", "--allow-run-as-root"]
    for rank in range(world_size):
        own = [word for word in words if not word.startswith(_OWN)] if rank else words
        only = ["--model-control-mode=explicit", f"--load-model={LANGUAGE_MODEL.name}"] if rank else []
        found += [":"] * bool(rank) + ["-n", "1", *own, *only, f"{region}{rank}-"]
    return found
