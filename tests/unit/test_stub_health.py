"""The flag by which Triton checks whether a stage's process is alive."""

import tempfile
from pathlib import Path

import pytest

from security.soak import wait_for
from videollama_server.machine.stub_health import StubHealth

HANDLE = 5000  # on the region's second page
START = HANDLE + 16  # behind a count of references


@pytest.fixture
def region():
    """The memory that Triton shares with a stage: four flags at the handle."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(HANDLE) + b"\1" + bytes(115))
        file.flush()
        yield Path(file.name)


def words(region: Path, handle: int = HANDLE) -> list[str]:
    return [
        "stub",
        "model.py",
        f"/{region.name}",
        "1048576",
        "65536",
        "1",
        "python",
        str(handle),
        "encoder_0_0",
        "runtime",
    ]


def flags(region: Path) -> bytes:
    return region.read_bytes()[START : START + 4]


def test_the_flag_is_set_and_nothing_else(region):
    before = region.read_bytes()
    health = StubHealth(False, words(region))
    assert health.is_known and flags(region) == bytes(4)
    with health.working():
        assert region.read_bytes() == before[:START] + b"\1" + before[START + 1 :]


def test_it_is_set_again_where_triton_clears_it_while_the_stage_works(region):
    health = StubHealth(False, words(region))
    with health.working():
        for _ in range(3):
            with region.open("r+b") as file:
                file.seek(START)
                file.write(b"\0")
            assert wait_for(lambda: flags(region)[0])


def test_memory_with_another_layout_is_left_alone(region):
    data = bytearray(region.read_bytes())
    data[START + 2] = 7
    region.write_bytes(data)
    health = StubHealth(False, words(region))
    with health.working():
        pass
    assert not health.is_known and region.read_bytes() == data


def test_memory_of_another_kind_of_stage_is_left_alone(region):
    assert not StubHealth(True, words(region)).is_known


@pytest.mark.parametrize("change", ["no region", "beyond its end", "other words", "no number"])
def test_a_process_that_is_not_a_stage_has_no_flag(region, change):
    asked = {
        "no region": words(Path("/dev/shm/vl2-there-is-none")),
        "beyond its end": words(region, 10**6),
        "other words": ["python", "-m", "pytest"],
        "no number": [*words(region)[:7], "x", "a", "b"],
    }[change]
    health = StubHealth(False, asked)
    with health.working():
        pass
    assert not health.is_known and flags(region) == bytes(4)
