"""A server over several GPUs: one process per rank under mpirun, of which the first answers (TensorRT-LLM's leader mode).

Source: triton_backend/scripts/launch_triton_server.py at v1.2.1.
"""

from collections.abc import Sequence

from videollama_core.protocol.contract import LANGUAGE_MODEL

_POOL = "--cuda-memory-pool-byte-size="
_OWN = ("--load-model=", "--model-control-mode=", _POOL)  # of the first rank


def with_ranks(server: Sequence[str], world_size: int, pool_bytes: int = 0) -> list[str]:
    """The server's command on `world_size` GPUs; as it is for one.

    The other ranks load the language model alone and stay in its initialisation: they never come to open a port.

    Args:
        pool_bytes: of the first GPU's memory, for tensors that go from stage to stage there.
    """
    words = [*server, "--disable-auto-complete-config"]
    if pool_bytes:
        words.append(f"{_POOL}0:{pool_bytes}")
    if world_size == 1:
        return words
    found = ["mpirun", "--allow-run-as-root"]
    for rank in range(world_size):
        own = [word for word in words if not word.startswith(_OWN)] if rank else words
        only = ["--model-control-mode=explicit", f"--load-model={LANGUAGE_MODEL.name}"] if rank else []
        region = f"--backend-config=python,shm-region-prefix-name=prefix{rank}_"
        found += [":"] * bool(rank) + ["-n", "1", *own, *only, region]
    return found
