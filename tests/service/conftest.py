"""Fixtures of the tests with a running server."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from otlp_collector import collecting
from service.servers import start, stop


@pytest.fixture(scope="package")
def server_of(bundle_of, request, tmp_path_factory):
    """Name of a golden variant, or "endless" -> a running server; each runs until the last test of this folder has ended."""
    running = {}

    def serve(variant: str):
        if variant not in running:
            log = tmp_path_factory.mktemp(variant) / "server.log"
            bundle = request.getfixturevalue("endless") if variant == "endless" else bundle_of(variant)
            running[variant] = start(bundle, log, "--expose-stages")
        return running[variant]

    yield serve
    with ThreadPoolExecutor() as pool:  # ending is mostly waiting
        list(pool.map(stop, running.values()))


@pytest.fixture(scope="module")
def collector():
    """A collector of traces and metrics, one for a file of tests."""
    with collecting() as found:
        yield found
