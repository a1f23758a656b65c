"""Needs a GPU: the tree and the pinned packages, nothing downloaded."""

import pytest
import torch


def pytest_collection_modifyitems() -> None:
    if not torch.cuda.is_available():
        pytest.exit(
            "no GPU can be used here (torch.cuda.is_available() is false): run make test-gpu on a machine with an NVIDIA GPU "
            "and a CUDA build of PyTorch",
            1,
        )


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda")
