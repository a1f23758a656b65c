"""A server over several GPUs: one process per rank under mpirun, of which the first answers (TensorRT-LLM's leader mode).

Source: triton_backend/scripts/launch_triton_server.py at v1.2.1.
"""

from collections.abc import Sequence

from videollama_core.contract import LANGUAGE_MODEL

_OWN = ("--load-model=", "--model-control-mode=")


def with_ranks(server: Sequence[str], world_size: int) -> list[str]:
    """The server's command on `world_size` GPUs; as it is for one.

    The other ranks load the language model alone and stay in its initialisation: they never come to open a port.
    """
    words = [*server, "--disable-auto-complete-config"]
    if world_size == 1:
        return words
    found = ["mpirun", "--allow-run-as-root"]
    for rank in range(world_size):
        own = [word for word in words if not word.startswith(_OWN)] if rank else words
        only = ["--model-control-mode=explicit", f"--load-model={LANGUAGE_MODEL.name}"] if rank else []
        region = f"--backend-config=python,shm-region-prefix-name=prefix{rank}_"
        found += [":"] * bool(rank) + ["-n", "1", *own, *only, region]
    return found
