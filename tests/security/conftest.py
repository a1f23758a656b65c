"""`case_table` collects what each hostile case was answered with; `--write-cases` writes docs/security.md from it."""

import pytest

from security.case_table import CaseTable
from service.servers import alive, serving


@pytest.fixture(scope="module")
def case_table(request):
    """The table of a module's cases; the module names its part of the page in AREA."""
    table = CaseTable(request.module.AREA)
    yield table
    if request.config.getoption("--write-cases") and table.rows:
        table.write()


@pytest.fixture(scope="package")
def default_server(bundle_of, tmp_path_factory):
    """A server as it stands by default, and with read-only HTTP."""
    with serving(bundle_of("qwen2-clip-8f"), tmp_path_factory.mktemp("endpoints") / "log") as running:
        yield running


@pytest.fixture
def still_answers(default_server):
    """After a test the default server's own process lives, and answers as before."""
    yield
    with default_server.client() as client:
        assert client.ask("Who?", max_new_tokens=2).usage.completion_tokens == 2
    assert alive(default_server.triton)
