"""Slots of the ONNX engine: reads return what was written, whichever other slots come, go, grow and move."""

from random import Random

import numpy as np
import pytest

from videollama_core.generation.slot_cache import SlotCache

LAYERS, HEADS, WIDTH = 3, 2, 4


def made(numbers: np.random.Generator, count: int) -> np.ndarray:
    return numbers.standard_normal((LAYERS, 2, HEADS, count, WIDTH), np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_every_slot_holds_what_was_written(seed):
    random, numbers = Random(seed), np.random.default_rng(seed)
    cache = SlotCache(5, LAYERS, HEADS, WIDTH)
    wanted = {slot: np.zeros((LAYERS, 2, HEADS, 0, WIDTH), np.float32) for slot in range(5)}
    seen = {slot: np.zeros(0, bool) for slot in range(5)}
    for _ in range(300):
        slot = random.randrange(5)
        match random.randrange(4):
            case 0:
                values = made(numbers, random.choice((1, 40, 200)))
                visible = numbers.integers(0, 2, values.shape[3]).astype(bool)
                cache.reserve([slot], len(visible))
                cache.append(slot, values, visible)
                wanted[slot] = np.concatenate([wanted[slot], values], axis=3)
                seen[slot] = np.concatenate([seen[slot], visible])
            case 1:
                cache.free(slot)
                wanted[slot], seen[slot] = wanted[slot][:, :, :, :0], seen[slot][:0]
            case _:
                asked = random.sample(range(5), random.randint(1, 5))
                cache.reserve(asked, 1)
                rows = cache.line_up(asked)
                assert sorted(rows) == list(range(len(asked)))
                past = cache.past(0, len(asked))
                for one, row in zip(asked, rows, strict=True):
                    for number, array in enumerate(past):
                        stored = array[row][:, : cache.length[one]]
                        assert np.array_equal(stored, wanted[one][number // 2, number % 2])
        assert cache.length == [len(seen[one]) for one in range(5)]
        for one in filter(cache.length.__getitem__, range(5)):
            assert np.array_equal(cache.read(one), wanted[one]) and np.array_equal(cache.visible(one), seen[one])


def test_a_step_reads_the_cache_without_a_copy():
    """A layer's keys are one block of memory that the cache owns: nothing is copied for a step."""
    cache = SlotCache(4, LAYERS, HEADS, WIDTH)
    numbers = np.random.default_rng(0)
    for slot in range(4):
        cache.reserve([slot], 130)
        cache.append(slot, made(numbers, 130), np.ones(130, bool))
    for asked in ([0, 1], [3], [2, 0, 3]):
        cache.reserve(asked, 1)
        cache.line_up(asked)
        for array in cache.past(0, len(asked)):
            assert array.flags.c_contiguous and np.shares_memory(array, cache._values)


def test_memory_follows_the_longest_slot():
    cache = SlotCache(2, LAYERS, HEADS, WIDTH)
    numbers = np.random.default_rng(0)
    cache.reserve([0], 1000)
    cache.append(0, made(numbers, 1000), np.ones(1000, bool))
    cache.reserve([1], 10)
    assert cache.capacity == 1024
    cache.free(0)
    cache.reserve([1], 10)
    assert cache.capacity == 64


def test_no_value_of_one_request_reaches_the_next():
    """An attention weight of zero for masked positions does not hide NaN."""
    cache, numbers = SlotCache(2, LAYERS, HEADS, WIDTH), np.random.default_rng(0)
    for slot in (0, 1):
        cache.reserve([slot], 70)
        cache.append(slot, np.full_like(made(numbers, 70), np.nan), np.ones(70, bool))
        cache.free(slot)
    cache.reserve([1, 0], 1)
    cache.line_up([1])
    assert all(np.isfinite(array).all() for array in cache.past(0, 2))
